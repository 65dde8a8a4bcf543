//! The UI is built by `make ui` into ui/dist and embedded from there. cargo never runs npm: without it the folder is
//! made empty, and the binary serves one line that says so.

fn main() -> std::io::Result<()> {
    let dist = "../../ui/dist";
    std::fs::create_dir_all(dist)?;
    println!("cargo::rerun-if-changed={dist}");
    println!("cargo::rerun-if-changed=build.rs");
    Ok(())
}
