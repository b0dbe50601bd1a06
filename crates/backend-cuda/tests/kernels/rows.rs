//! The row-wise operations, of both working types.

use oarlock_backend::quant::SplitMix;
use oarlock_backend_cuda::kernels::launch::{self, WorkType};
use oarlock_backend_cuda::kernels::{
    AddBiasParams, AddRmsNormParams, CopyBlocksParams, EmbedParams, GatedActivationParams,
    GatherParams, HeadRmsNormParams, RmsNormParams, RotaryKvWriteParams, SoftCapParams,
};

use crate::device::{Device, assert_near, assert_same, has_kernels, rounded};

const BOTH: [WorkType; 2] = [WorkType::Bf16, WorkType::F32];

fn random_values(len: usize, seed: u64) -> Vec<f32> {
    let mut random = SplitMix(seed);
    (0..len).map(|_| random.uniform() + random.uniform()).collect()
}

/// What a float32 result of this working type may be off.
fn tolerance(work: WorkType) -> f64 {
    match work {
        WorkType::F32 => 1e-6,
        WorkType::Bf16 => 3e-3,
    }
}

fn norm(row: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / row.len() as f64;
    let inverse = 1.0 / (mean + f64::from(eps)).sqrt();
    row.iter().zip(weight).map(|(v, w)| (f64::from(*v) * inverse * f64::from(*w)) as f32).collect()
}

#[test]
fn norms() {
    if !has_kernels() {
        return;
    }
    let eps = 1e-5;
    for (seed, width) in (1..).zip([16, 40, 1001, 4096]) {
        for work in BOTH {
            let mut device = Device::new(seed);
            let rows = 3;
            let (residual, delta) =
                (random_values(rows * width, 1), random_values(rows * width, 2));
            let weight = random_values(width, 3);
            let num_rows = device.upload(&[rows as u32]);
            let on_device = device.upload(&weight);
            for with_delta in [false, true] {
                let sum: Vec<f32> = residual
                    .iter()
                    .zip(&delta)
                    .map(|(a, b)| if with_delta { a + b } else { *a })
                    .collect();
                let want: Vec<f32> =
                    sum.chunks(width).flat_map(|row| norm(row, &weight, eps)).collect();
                let params = AddRmsNormParams {
                    out: device.allocate(rows * width * work.bytes()),
                    residual: device.upload(&residual),
                    delta: if with_delta { device.upload(&delta) } else { 0 },
                    weight: on_device,
                    num_rows,
                    width: width as u32,
                    eps,
                };
                device.run(&launch::add_rms_norm(work, 5, width as u32), &params);
                let got = device.read_work(work, params.out, rows * width);
                assert_near(&got, &want, tolerance(work), &format!("{work:?} norm of {width}"));
                assert_same(&device.read::<f32>(params.residual, rows * width), &sum, "residual");
                let params = RmsNormParams {
                    values: params.residual,
                    weight: on_device,
                    num_rows,
                    width: width as u32,
                    eps,
                };
                device.run(&launch::rms_norm(5, width as u32), &params);
                let alone: Vec<f32> = device.read(params.values, rows * width);
                assert_same(&rounded(work, &alone), &got, "in place, the same bits");
            }
        }
    }
}

#[test]
fn norms_of_heads() {
    if !has_kernels() {
        return;
    }
    for (heads, kv_heads, width) in [(4, 1, 256), (6, 3, 48), (2, 2, 16)] {
        for work in BOTH {
            let mut device = Device::new(5);
            let (rows, all) = (3, (heads + 2 * kv_heads) * width);
            let qkv = rounded(work, &random_values(rows * all, 4));
            let weights = [random_values(width, 5), random_values(width, 6)];
            let params = HeadRmsNormParams {
                qkv: device.upload_work(work, &qkv),
                query_weight: device.upload(&weights[0]),
                key_weight: device.upload(&weights[1]),
                num_rows: device.upload(&[rows as u32]),
                num_heads: heads as u32,
                num_kv_heads: kv_heads as u32,
                head_dim: width as u32,
                eps: 1e-6,
            };
            let launch = launch::head_rms_norm(work, 4, heads as u32, kv_heads as u32);
            device.run(&launch, &params);
            let got = device.read_work(work, params.qkv, rows * all);
            let want: Vec<f32> = qkv
                .chunks(width)
                .enumerate()
                .flat_map(|(i, head)| match i % (heads + 2 * kv_heads) {
                    at if at < heads => norm(head, &weights[0], 1e-6),
                    at if at < heads + kv_heads => norm(head, &weights[1], 1e-6),
                    _ => head.to_vec(),
                })
                .collect();
            assert_near(&got, &want, tolerance(work), &format!("{work:?} heads of {width}"));
        }
    }
}

#[test]
fn embedding_and_gathering() {
    if !has_kernels() {
        return;
    }
    for width in [40, 33, 512] {
        for work in BOTH {
            let mut device = Device::new(6);
            let table = rounded(work, &random_values(10 * width, 7));
            let tokens = [5_u32, 104, 100, 109, 110];
            let params = EmbedParams {
                out: device.allocate(tokens.len() * width * 4),
                table: device.upload_work(work, &table),
                tokens: device.upload(&tokens),
                num_rows: device.upload(&[tokens.len() as u32]),
                width: width as u32,
                first_token: 100,
                table_rows: 10,
                scale: -0.5,
            };
            device.run(&launch::embed(work, 6), &params);
            let want: Vec<f32> = tokens
                .iter()
                .flat_map(|token| match table.chunks(width).nth(token.wrapping_sub(100) as usize) {
                    Some(row) => row.iter().map(|value| value * -0.5).collect(),
                    None => vec![-0.0; width],
                })
                .collect();
            assert_same(&device.read(params.out, tokens.len() * width), &want, "embedding");
            let chosen = [3_u32, 3, 0, 9];
            let params = GatherParams {
                out: device.allocate(4 * width * work.bytes()),
                input: params.table,
                rows: device.upload(&chosen),
                num_rows: device.upload(&[4_u32]),
                width: width as u32,
                padding: 0,
            };
            device.run(&launch::gather(work, 9), &params);
            let want: Vec<f32> = chosen
                .iter()
                .flat_map(|row| table[*row as usize * width..][..width].to_vec())
                .collect();
            assert_same(&device.read_work(work, params.out, 4 * width), &want, "gathered rows");
        }
    }
}

#[test]
fn activations_soft_caps_and_biases() {
    if !has_kernels() {
        return;
    }
    for width in [1, 16, 102, 1500] {
        for work in BOTH {
            let mut device = Device::new(7);
            let mut gate_up = random_values(3 * 2 * width, 8);
            gate_up.iter_mut().step_by(7).for_each(|value| *value *= 30.0);
            let gate_up = rounded(work, &gate_up);
            for activation in [0, 1] {
                let params = GatedActivationParams {
                    out: device.allocate(3 * width * work.bytes()),
                    gate_up: device.upload_work(work, &gate_up),
                    num_rows: device.upload(&[3_u32]),
                    width: width as u32,
                    activation,
                };
                device.run(&launch::gated_activation(work, 4, width as u32), &params);
                let want: Vec<f32> = gate_up
                    .chunks(2 * width)
                    .flat_map(|row| row[..width].iter().zip(&row[width..]).collect::<Vec<_>>())
                    .map(|(gate, up)| {
                        let (x, up) = (f64::from(*gate), f64::from(*up));
                        let root = (2.0 / std::f64::consts::PI).sqrt();
                        (up * match activation {
                            0 => x / (1.0 + (-x).exp()),
                            _ => 0.5 * x * (1.0 + (root * (x + 0.044_715 * x * x * x)).tanh()),
                        }) as f32
                    })
                    .collect();
                let got = device.read_work(work, params.out, 3 * width);
                assert_near(&got, &want, tolerance(work), &format!("{activation} of {width}"));
            }
        }
        let mut device = Device::new(8);
        let mut values = random_values(2 * width, 9);
        values.iter_mut().step_by(3).for_each(|value| *value *= 100.0);
        let params = SoftCapParams {
            values: device.upload(&values),
            num_rows: device.upload(&[2_u32]),
            width: width as u32,
            cap: 30.0,
        };
        device.run(&launch::soft_cap(3, width as u32), &params);
        let got: Vec<f32> = device.read(params.values, 2 * width);
        let want: Vec<f32> =
            values.iter().map(|value| (30.0 * (f64::from(*value) / 30.0).tanh()) as f32).collect();
        assert_near(&got, &want, 1e-6, &format!("soft cap of {width}"));
        let bias = random_values(width, 13);
        let params = AddBiasParams {
            values: params.values,
            bias: device.upload(&bias),
            num_rows: params.num_rows,
            width: width as u32,
            padding: 0,
        };
        device.run(&launch::add_bias(3, width as u32), &params);
        let want: Vec<f32> =
            got.chunks(width).flat_map(|row| row.iter().zip(&bias).map(|(a, b)| a + b)).collect();
        assert_same(&device.read(params.values, 2 * width), &want, &format!("bias of {width}"));
    }
}

#[test]
fn rotation_and_pages() {
    if !has_kernels() {
        return;
    }
    // The last two are rotated in part.
    for (heads, kv_heads, width, half) in
        [(4, 2, 64, 32), (3, 1, 16, 8), (2, 2, 128, 64), (3, 1, 64, 12), (2, 2, 16, 4)]
    {
        for (work, interleaved) in [(WorkType::Bf16, 0), (WorkType::F32, 1), (WorkType::F32, 0)] {
            let mut device = Device::new(9);
            let (rows, all) = (4, (heads + 2 * kv_heads) * width);
            let qkv = rounded(work, &random_values(rows * all, 10));
            let positions = [17_u32, 31, 0, 3];
            let firsts = [0_u32, 0, 2, 2];
            let tables = [5_u32, 1, 3];
            let angles = random_values(32 * half, 11);
            let (cosines, sines): (Vec<f32>, Vec<f32>) =
                angles.iter().map(|a| (a.cos(), a.sin())).unzip();
            let page = 2 * 16 * width;
            let cache_len = 6 * kv_heads * page;
            let params = RotaryKvWriteParams {
                qkv: device.upload_work(work, &qkv),
                cache: device.upload_work(work, &vec![9.0; cache_len]),
                cosines: device.upload(&cosines),
                sines: device.upload(&sines),
                positions: device.upload(&positions),
                first_table_entry: device.upload(&firsts),
                tables: device.upload(&tables),
                num_rows: device.upload(&[rows as u32]),
                num_heads: heads as u32,
                num_kv_heads: kv_heads as u32,
                head_dim: width as u32,
                half: half as u32,
                interleaved,
                padding: 0,
            };
            device.run(&launch::rotary_kv_write(work, 5), &params);
            let mut want = qkv.clone();
            let mut cache = vec![9.0; cache_len];
            for row in 0..rows {
                let position = positions[row] as usize;
                let row_values = &mut want[row * all..][..all];
                for head in row_values[..(heads + kv_heads) * width].chunks_mut(width) {
                    for pair in 0..half {
                        let (i, j) = if interleaved == 1 {
                            (2 * pair, 2 * pair + 1)
                        } else {
                            (pair, pair + half)
                        };
                        let (cos, sin) =
                            (cosines[position * half + pair], sines[position * half + pair]);
                        let (a, b) = (head[i], head[j]);
                        head[i] = a.mul_add(cos, -(b * sin));
                        head[j] = b.mul_add(cos, a * sin);
                    }
                }
                let block = tables[firsts[row] as usize + position / 16] as usize;
                for head in 0..kv_heads {
                    for (kind, first) in [heads, heads + kv_heads].into_iter().enumerate() {
                        let to = ((block * kv_heads + head) * 2 + kind) * 16 * width
                            + position % 16 * width;
                        cache[to..to + width]
                            .copy_from_slice(&row_values[(first + head) * width..][..width]);
                    }
                }
            }
            let got = device.read_work(work, params.qkv, rows * all);
            assert_same(&got, &rounded(work, &want), "rotated");
            let got = device.read_work(work, params.cache, cache_len);
            assert_same(&got, &rounded(work, &cache), "pages");
        }
    }
}

#[test]
fn blocks_are_copied() {
    if !has_kernels() {
        return;
    }
    let (layers, blocks, values) = (3, 6, 2 * 16 * 2 * 16);
    let cache = random_values(layers * blocks * values, 12);
    let mut device = Device::new(10);
    let params = CopyBlocksParams {
        cache: device.upload(&cache),
        pairs: device.upload(&[0_u32, 5, 1, 4]),
        num_pairs: device.upload(&[2_u32]),
        block_bytes: values as u64 * 4,
        layer_bytes: (blocks * values) as u64 * 4,
    };
    device.run(&launch::copy_blocks(3, layers as u32), &params);
    let mut want = cache.clone();
    for layer in want.chunks_mut(blocks * values) {
        layer.copy_within(..values, 5 * values);
        layer.copy_within(values..2 * values, 4 * values);
    }
    assert_same(&device.read::<f32>(params.cache, cache.len()), &want, "copied blocks");
}
