//! Reads folders of checksums, and finds the first operation in which two of them differ.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use oarlock_worker::TRACED_OPERATIONS;
use serde_json::json;

use super::CompareArguments;

/// What a checksum is of. Ordered as a decoder computes: position by position, layer by layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) position: u32,
    /// 0 before the first layer; the layer plus 1; the greatest number after the last.
    order: u32,
    /// Index in [`TRACED_OPERATIONS`].
    operation: u8,
    pub(super) part: u32,
    /// Hash of the sequence up to the position.
    pub(super) key: u64,
}

impl Place {
    pub(super) fn operation(&self) -> &'static str {
        TRACED_OPERATIONS[usize::from(self.operation)]
    }

    /// `None` outside of layers.
    pub(super) fn layer(&self) -> Option<u32> {
        self.order.checked_sub(1).filter(|layer| *layer < u32::MAX - 1)
    }
}

/// Checksums of a run.
pub(super) type Records = BTreeMap<Place, u64>;

/// Reads the files of all ranks. A place that was computed twice must have come out the same.
pub(super) fn read(folder: &Path) -> anyhow::Result<(Records, Option<Place>)> {
    let mut records = Records::new();
    let mut differs: Option<Place> = None;
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|ending| ending != "trace") {
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        // The last line of a worker that was killed may be half a line.
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        for (number, line) in whole.lines().enumerate() {
            let (place, checksum) = parse(line)
                .with_context(|| format!("{}:{}: not a checksum", path.display(), number + 1))?;
            if *records.entry(place).or_insert(checksum) != checksum {
                differs = Some(differs.map_or(place, |first| first.min(place)));
            }
        }
    }
    anyhow::ensure!(!records.is_empty(), "{}: no *.trace files with checksums", folder.display());
    Ok((records, differs))
}

fn parse(line: &str) -> Option<(Place, u64)> {
    let mut words = line.split(' ');
    let mut next = || words.next();
    let key = u64::from_str_radix(next()?, 16).ok()?;
    let position = next()?.parse().ok()?;
    let layer = next()?;
    let name = next()?;
    let operation = TRACED_OPERATIONS.iter().position(|known| *known == name)?;
    let part = next()?.parse().ok()?;
    let checksum = u64::from_str_radix(next()?, 16).ok()?;
    let order = match layer {
        "-" if operation == 0 => 0,
        "-" => u32::MAX,
        layer => layer.parse::<u32>().ok()?.checked_add(1)?,
    };
    Some((Place { position, order, operation: operation as u8, part, key }, checksum))
}

pub(super) fn run(arguments: &CompareArguments) -> anyhow::Result<()> {
    let (first, first_differs) = read(&arguments.first)?;
    let (second, second_differs) = read(&arguments.second)?;
    let common = || first.iter().filter_map(|(place, a)| Some((place, a, second.get(place)?)));
    let between = common().find(|(_, a, b)| a != b).map(|(place, ..)| *place);
    let num_common = common().count();
    let difference = [first_differs, second_differs, between].into_iter().flatten().min();
    let mut out = std::io::stdout();
    if arguments.json {
        let difference = difference.map(|place| {
            json!({
                "position": place.position, "layer": place.layer(),
                "operation": place.operation(), "part": place.part,
                "key": format!("{:016x}", place.key),
            })
        });
        let only = [first.len() - num_common, second.len() - num_common];
        writeln!(
            out,
            "{}",
            json!({"compared": num_common, "only": only, "difference": difference})
        )?;
    } else if let Some(place) = difference {
        let layer = place.layer().map_or_else(String::new, |layer| format!("layer {layer}, "));
        let run = match place {
            place if Some(place) == between => "the runs differ",
            place if Some(place) == first_differs => "the first run differs from itself",
            _ => "the second run differs from itself",
        };
        let Place { position, part, key, .. } = place;
        let operation = place.operation();
        writeln!(
            out,
            "{run} first at position {position}, {layer}{operation}, part {part} (sequence {key:016x})"
        )?;
    } else {
        writeln!(out, "{num_common} checksums agree")?;
    }
    anyhow::ensure!(num_common > 0, "the runs have no position of a sequence in common");
    anyhow::ensure!(difference.is_none(), "the runs differ");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(lines: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let text = lines.join("\n") + "\n";
        fs::write(folder.path().join("rank-0.trace"), text + "half a li").unwrap();
        folder
    }

    fn compare(a: &[&str], b: &[&str]) -> anyhow::Result<()> {
        let (a, b) = (folder(a), folder(b));
        let [first, second] = [a.path(), b.path()].map(Path::to_owned);
        run(&CompareArguments { first, second, json: false })
    }

    #[test]
    fn places_are_in_the_decoders_order() {
        let lines = [
            "0 3 - embed 0 1",
            "0 3 0 qkv 0 1",
            "0 3 0 down 0 1",
            "0 3 1 qkv 0 1",
            "0 3 - output_norm 0 1",
            "0 4 - embed 0 1",
        ];
        let places: Vec<_> = lines.iter().map(|line| parse(line).unwrap().0).collect();
        assert!(places.is_sorted());
        assert_eq!(
            places.iter().map(Place::layer).collect::<Vec<_>>(),
            [None, Some(0), Some(0), Some(1), None, None]
        );
        for bad in ["", "0 3 0 qkv 0", "x 3 0 qkv 0 1", "0 3 0 other 0 1", "0 3 -1 qkv 0 1"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn differences_between_runs_and_inside_of_one_are_found() {
        let one = ["a 0 - embed 0 1", "b 1 - embed 0 2"];
        compare(&one, &one).unwrap();
        compare(&one, &one[1..]).unwrap();
        assert!(compare(&one, &["b 1 - embed 0 3"]).is_err());
        assert!(compare(&one, &["b 1 - embed 0 2", "b 1 - embed 0 9"]).is_err());
        let nothing = compare(&one, &["c 1 - embed 0 2"]).unwrap_err();
        assert!(nothing.to_string().contains("in common"), "{nothing}");
    }
}
