//! `cargo xtask codegen`: Rust types from the `.proto` files, committed so that a build needs no generator.
//!
//! The generator is a feature of this package, so that other tasks do not wait for its build.

/// Writes the generated files, or with `check` says whether the committed ones are the same.
///
/// # Errors
/// Where a schema cannot be compiled, a file not be written, or where one differs.
#[cfg(feature = "codegen")]
pub(crate) fn run(check: bool) -> anyhow::Result<()> {
    generate("proto/onceward/v1/record.proto", "proto", "crates/core/src/wire.rs", check)?;
    // What the example and the tests of gRPC call.
    let payments = "crates/layer/examples/payments";
    generate(&format!("{payments}/payments.proto"), payments, &format!("{payments}/payments.rs"), check)
}

#[cfg(feature = "codegen")]
fn generate(schema: &str, folder: &str, output: &str, check: bool) -> anyhow::Result<()> {
    use anyhow::{Context, ensure};

    let root = crate::tree::root();
    let descriptors = protox::compile([root.join(schema)], [root.join(folder)]).context(schema.to_owned())?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]).btree_map(["."]);
    // The schema's comments are the schema's: what they would say again here could go stale.
    config.disable_comments(["."]);
    config.service_generator(tonic_prost_build::configure().service_generator());
    let requests = descriptors
        .file
        .into_iter()
        .map(|file| (prost_build::Module::from_protobuf_package_name(file.package()), file));
    let modules = config.generate(requests.collect()).context(schema.to_owned())?;
    let generated: String = modules.into_values().collect();
    // The generator's first line says only that it made the file.
    let generated = generated.split_once('\n').map_or("", |(_, rest)| rest);
    // House rule: whoever allows says why.
    let generated = generated
        .replace("clippy::let_unit_value,\n", "clippy::let_unit_value,\n        reason = \"generated\",\n")
        .replace("(non_camel_case_types)", "(non_camel_case_types, reason = \"generated\")");
    let generated = format!("// @generated from {schema} by `cargo xtask codegen`.\n{generated}");
    let path = root.join(output);
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    if check {
        ensure!(committed == generated, "{output} is not what {schema} generates: run `cargo xtask codegen`");
    } else if committed != generated {
        std::fs::write(&path, generated).context(output.to_owned())?;
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
