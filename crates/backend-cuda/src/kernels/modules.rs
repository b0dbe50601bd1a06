//! The compiled kernels: for each file of `kernels/src` its cubins and PTX.

/// One file of `kernels/src`, compiled.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Name of the file, without its extension.
    pub name: &'static str,
    /// Its entries.
    pub entries: &'static [&'static str],
    /// Machine code by compute capability (80 is 8.0), ascending. A device runs the greatest of its
    /// own major version that is not above it.
    pub cubins: &'static [(u32, &'static [u8])],
    /// PTX by compute capability, ascending, for everything else: a device runs the greatest that is
    /// not above its own.
    pub ptx: &'static [(u32, &'static str)],
}

include!(concat!(env!("OUT_DIR"), "/modules.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_is_whole() {
        assert_eq!(HAS_KERNELS, !MODULES.is_empty());
        for module in MODULES {
            assert!(!module.entries.is_empty(), "{} has entries", module.name);
            for (arch, ptx) in module.ptx {
                assert!(ptx.contains(&format!(".target sm_{arch}")), "{} {arch}", module.name);
                for entry in module.entries {
                    assert!(ptx.contains(&format!(".entry {entry}(")), "{entry} for {arch}");
                }
            }
            assert_eq!(module.cubins.len(), module.ptx.len(), "{}", module.name);
        }
    }
}
