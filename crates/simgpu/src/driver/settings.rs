//! What the environment says of the devices.

use std::sync::OnceLock;

/// Devices and how they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) num_devices: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) seed: u64,
    /// Host threads of one device; 0 is one for each core.
    pub(crate) threads: usize,
    /// The launch of each process at which its device breaks; 0 is never.
    pub(crate) breaks_at: u64,
    /// Compute capability, major and minor.
    pub(crate) capability: (i32, i32),
}

const DEFAULT: Settings = Settings {
    num_devices: 1,
    memory_bytes: 80 << 30,
    seed: 0,
    threads: 0,
    breaks_at: 0,
    // Of no architecture that machine code exists for.
    capability: (99, 0),
};

/// Read once. What cannot be understood ends the process: a test must not run on other devices than it
/// asked for.
pub(crate) fn settings() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(|| read(&|name| std::env::var(name).ok()))
}

fn read(variable: &dyn Fn(&str) -> Option<String>) -> Settings {
    fn parsed<T>(
        variable: &dyn Fn(&str) -> Option<String>,
        name: &str,
        default: T,
        parse: impl Fn(&str) -> Option<T>,
    ) -> T {
        let Some(text) = variable(name) else { return default };
        parse(&text).unwrap_or_else(|| panic!("simgpu: {name}={text} is not understood"))
    }
    let (num_devices, memory_bytes) = parsed(
        variable,
        "OARLOCK_SIMGPU",
        (DEFAULT.num_devices, DEFAULT.memory_bytes),
        parse_devices,
    );
    let number = |text: &str| text.parse().ok();
    Settings {
        num_devices,
        memory_bytes,
        seed: parsed(variable, "OARLOCK_SIMGPU_SEED", DEFAULT.seed, number),
        threads: parsed(variable, "OARLOCK_SIMGPU_THREADS", DEFAULT.threads, |text| {
            text.parse().ok()
        }),
        breaks_at: parsed(variable, "OARLOCK_SIMGPU_BREAKS_AT", DEFAULT.breaks_at, number),
        capability: parsed(variable, "OARLOCK_SIMGPU_CAPABILITY", DEFAULT.capability, |text| {
            let (major, minor) = text.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        }),
    }
}

/// `2x80GiB`, `1x512MiB`.
fn parse_devices(text: &str) -> Option<(usize, u64)> {
    let (count, size) = text.split_once('x')?;
    let (number, unit) = if let Some(number) = size.strip_suffix("GiB") {
        (number, 1_u64 << 30)
    } else {
        (size.strip_suffix("MiB")?, 1 << 20)
    };
    let bytes = number.parse::<u64>().ok()?.checked_mul(unit)?;
    Some((count.parse().ok()?, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_counted_and_sized() {
        assert_eq!(parse_devices("2x80GiB"), Some((2, 80 << 30)));
        assert_eq!(parse_devices("0x1MiB"), Some((0, 1 << 20)));
        assert_eq!(parse_devices("80GiB"), None);
        let given = |name: &str| match name {
            "OARLOCK_SIMGPU" => Some("3x16GiB".to_owned()),
            "OARLOCK_SIMGPU_CAPABILITY" => Some("8.6".to_owned()),
            "OARLOCK_SIMGPU_SEED" => Some("7".to_owned()),
            _ => None,
        };
        let settings = read(&given);
        assert_eq!((settings.num_devices, settings.capability), (3, (8, 6)));
        assert_eq!((settings.seed, settings.threads), (7, 0));
    }
}
