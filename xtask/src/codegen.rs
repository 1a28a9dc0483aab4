//! `cargo xtask codegen`: Rust types from `proto/`, committed so that a build needs no generator.
//!
//! The generator is a feature of this package, so that other tasks do not wait for its build.

/// Writes the generated file, or with `check` says whether the committed one is the same.
///
/// # Errors
/// Where the schema cannot be compiled, the file not be written, or where it differs.
#[cfg(feature = "codegen")]
pub(crate) fn run(check: bool) -> anyhow::Result<()> {
    use anyhow::{Context, ensure};

    const SCHEMA: &str = "proto/onceward/v1/record.proto";
    const OUTPUT: &str = "crates/core/src/wire.rs";

    let root = crate::tree::root();
    let descriptors = protox::compile([root.join(SCHEMA)], [root.join("proto")]).context(SCHEMA)?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]).btree_map(["."]);
    // The schema's comments are the schema's: what they would say again here could go stale.
    config.disable_comments(["."]);
    let requests = descriptors
        .file
        .into_iter()
        .map(|file| (prost_build::Module::from_protobuf_package_name(file.package()), file));
    let modules = config.generate(requests.collect()).context(SCHEMA)?;
    let generated: String = modules.into_values().collect();
    // The generator's first line says only that it made the file.
    let generated = generated.split_once('\n').map_or("", |(_, rest)| rest);
    let generated = format!("// @generated from {SCHEMA} by `cargo xtask codegen`.\n{generated}");
    let path = root.join(OUTPUT);
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    if check {
        ensure!(committed == generated, "{OUTPUT} is not what {SCHEMA} generates: run `cargo xtask codegen`");
    } else if committed != generated {
        std::fs::write(&path, generated).context(OUTPUT)?;
    }
    Ok(())
}

/// Runs itself again, built with the generator.
///
/// # Errors
/// Where that fails.
#[cfg(not(feature = "codegen"))]
pub(crate) fn run(check: bool) -> anyhow::Result<()> {
    let check = if check { " --check" } else { "" };
    let line = format!("cargo run --quiet --package xtask --features codegen -- codegen{check}");
    crate::step::Shown::new(&line).run(&mut crate::step::Counts::default())
}
