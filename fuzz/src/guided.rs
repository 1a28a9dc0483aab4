//! The entry for libFuzzer, which is led by coverage: `cargo xtask fuzz --guided --seconds N TARGET` builds and runs it.
//! `ONCEWARD_FUZZ_TARGET` names the target.
#![cfg_attr(onceward_libfuzzer, no_main)]

#[cfg(onceward_libfuzzer)]
mod entry {
    use std::sync::OnceLock;

    use onceward_fuzz::{TARGETS, Target};

    static CHOSEN: OnceLock<Target> = OnceLock::new();

    fn chosen() -> Target {
        *CHOSEN.get_or_init(|| {
            let name = std::env::var("ONCEWARD_FUZZ_TARGET").unwrap_or_default();
            let found = TARGETS.iter().find(|target| target.name == name);
            *found.unwrap_or_else(|| panic!("ONCEWARD_FUZZ_TARGET names no target: {name:?}"))
        })
    }

    libfuzzer_sys::fuzz_target!(|input: &[u8]| {
        let _ = (chosen().run)(input);
    });
}

#[cfg(not(onceward_libfuzzer))]
fn main() {
    eprintln!("this is for libFuzzer: cargo xtask fuzz --guided --seconds 600 TARGET builds and runs it");
    std::process::exit(2);
}
