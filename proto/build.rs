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

    // What is large is in a box: an event is moved several times on its way from `decide` to the entry.
    let large = [
        "CvlanEvent.kind.created",
        "NodeEvent.kind.created",
        "SystemEvent.kind.bootstrapped",
        "TenantEvent.kind.created",
        "TokenEvent.kind.created",
        "UserEvent.kind.created",
    ];
    let mut config = prost_build::Config::new();
    for kind in large {
        config.boxed(format!(".cvlan.v1.{kind}"));
    }
    config
        .btree_map(["."])
        .bytes([
            ".cvlan.v1.Entry.events",
            ".cvlan.v1.ExportEvent",
            ".cvlan.v1.ExportHidden",
            ".cvlan.v1.BackupEntry",
            ".cvlan.v1.BackupBase",
            ".cvlan.v1.BackupState",
        ])
        .compile_well_known_types()
        .extern_path(".google.protobuf.Timestamp", "crate::Timestamp")
        .compile_fds(set)?;
    pbjson_build::Builder::new().register_descriptors(&bytes)?.emit_fields().build(&[".cvlan.v1"])?;
    Ok(())
}
