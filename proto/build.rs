//! Generates the Rust types and their proto3 JSON mapping from `cvlan/v1/*.proto`. No protoc: protox parses.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir("cvlan/v1")? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "proto") {
            println!("cargo::rerun-if-changed={}", path.display());
            files.push(path);
        }
    }
    files.sort();
    println!("cargo::rerun-if-changed=cvlan/v1");

    let set = protox::compile(&files, ["."])?;
    let bytes = prost::Message::encode_to_vec(&set);
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptor.bin"), &bytes)?;

    prost_build::Config::new()
        .btree_map(["."])
        .bytes([".cvlan.v1.Entry.events"])
        .compile_well_known_types()
        .extern_path(".google.protobuf.Timestamp", "crate::Timestamp")
        .compile_fds(set)?;
    pbjson_build::Builder::new().register_descriptors(&bytes)?.emit_fields().build(&[".cvlan.v1"])?;
    Ok(())
}
