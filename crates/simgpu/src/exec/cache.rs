//! A simple model of the L2: sets of lines of 128 bytes, each with four sectors of 32.

const WAYS: usize = 16;
const SECTORS_PER_LINE: u64 = 4;

#[derive(Debug, Clone, Copy, Default)]
struct Way {
    /// Line number plus one; 0 is empty.
    tag: u64,
    valid: u8,
    dirty: u8,
    used: u64,
}

/// The L2, and what it moved to and from DRAM.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    sets: Vec<[Way; WAYS]>,
    time: u64,
    pub(crate) read_sectors: u64,
    pub(crate) written_sectors: u64,
}

impl Cache {
    pub(crate) fn new(bytes: u64) -> Self {
        let num_sets = (bytes as usize / 128 / WAYS).max(1);
        Self { sets: vec![[Way::default(); WAYS]; num_sets], ..Self::default() }
    }

    /// Sectors that one instruction of a warp reads or writes. A sector that is written is not
    /// fetched: the model keeps byte masks, as hardware does.
    pub(crate) fn touch(&mut self, sectors: &[u64], is_write: bool) {
        if self.sets.is_empty() {
            return;
        }
        for &sector in sectors {
            let (line, bit) = (sector / SECTORS_PER_LINE, 1 << (sector % SECTORS_PER_LINE));
            self.time += 1;
            let mixed = line ^ line >> 11 ^ line >> 23;
            let set = (mixed % self.sets.len() as u64) as usize;
            let time = self.time;
            let ways = &mut self.sets[set];
            let hit = ways.iter().position(|way| way.tag == line + 1);
            let way = hit.unwrap_or_else(|| {
                let oldest = (0..WAYS).min_by_key(|&way| ways[way].used).unwrap_or(0);
                self.written_sectors += u64::from(ways[oldest].dirty.count_ones());
                ways[oldest] = Way { tag: line + 1, ..Way::default() };
                oldest
            });
            let way = &mut ways[way];
            way.used = time;
            if is_write {
                way.dirty |= bit;
            } else if way.valid & bit == 0 {
                self.read_sectors += 1;
            }
            way.valid |= bit;
        }
    }

    /// Writes back what is dirty.
    pub(crate) fn flush(&mut self) {
        for way in self.sets.iter_mut().flatten() {
            self.written_sectors += u64::from(way.dirty.count_ones());
            way.dirty = 0;
        }
    }
}
