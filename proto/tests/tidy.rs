//! The house keeps itself tidy: who may import whom, how long a file may be, what every member must have.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Everyone may import proto; the simulation may import anything.
const MAY_IMPORT: [(&str, &[&str]); 10] = [
    ("cvlan-proto", &[]),
    ("cvlan-core", &[]),
    ("cvlan-raft", &["cvlan-core"]),
    ("cvlan-projections", &["cvlan-core"]),
    ("cvlan-api", &["cvlan-core", "cvlan-raft", "cvlan-projections"]),
    ("cvlan-link", &["cvlan-core"]),
    ("cvlan-tunnel", &["cvlan-core"]),
    ("cvlan-client", &["cvlan-core", "cvlan-link", "cvlan-tunnel"]),
    ("cvlan-cli", &["cvlan-core", "cvlan-link"]),
    ("cvlan-sim", &["*"]),
];

/// Libraries that only these members may use (dev-dependencies apart).
const KEPT_TO: [(&str, &[&str]); 8] = [
    ("axum", &["cvlan-api", "cvlan-sim"]),
    ("openraft", &["cvlan-raft", "cvlan-api", "cvlan-sim"]),
    ("rusqlite", &["cvlan-projections", "cvlan-link"]),
    ("sled", &["cvlan-raft"]),
    ("bincode", &["cvlan-raft", "cvlan-link"]),
    ("gotatun", &["cvlan-tunnel"]),
    ("sqlx", &["cvlan-projections"]),
    (
        "tokio",
        &["cvlan-api", "cvlan-projections", "cvlan-link", "cvlan-tunnel", "cvlan-client", "cvlan-cli", "cvlan-sim"],
    ),
];

const LINES_MAX: usize = 700;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn members() -> Vec<Value> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let out = std::process::Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

fn dependencies(member: &Value) -> Vec<String> {
    let all = member["dependencies"].as_array().unwrap();
    all.iter().filter(|d| d["kind"] != "dev").map(|d| d["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn only_the_drawn_edges() {
    let allowed = BTreeMap::from(MAY_IMPORT);
    let members = members();
    let names: BTreeSet<_> = members.iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, allowed.keys().copied().collect(), "every member has its line in MAY_IMPORT");
    for member in &members {
        let name = member["name"].as_str().unwrap();
        for dependency in dependencies(member) {
            let ours = dependency.starts_with("cvlan-") && dependency != "cvlan-proto";
            let may = allowed[name];
            assert!(!ours || may == ["*"] || may.contains(&dependency.as_str()), "{name} must not import {dependency}");
            if let Some((_, users)) = KEPT_TO.iter().find(|(library, _)| *library == dependency) {
                assert!(users.contains(&name), "{name} must not use {dependency}: it is kept to {users:?}");
            }
        }
    }
}

#[test]
fn every_member_takes_versions_and_lints_from_the_workspace() {
    for member in members() {
        let path = member["manifest_path"].as_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("[lints]\nworkspace = true"), "{path}: [lints] workspace = true is missing");
        let mut section = "";
        for line in text.lines() {
            if line.starts_with('[') {
                section = line;
            }
            let versioned = section.contains("dependencies") && line.contains('"') && line.contains("version");
            assert!(!versioned, "{path}: versions stand in the root Cargo.toml only: {line}");
        }
    }
}

#[test]
fn no_file_is_over_long_and_every_one_says_what_it_is_for() {
    let mut seen = 0;
    for member in members() {
        let manifest = PathBuf::from(member["manifest_path"].as_str().unwrap());
        for path in sources(&manifest.parent().unwrap().join("src")) {
            let text = std::fs::read_to_string(&path).unwrap();
            // Tests stand at the bottom and do not count.
            let lines = text.lines().take_while(|l| *l != "#[cfg(test)]" && !l.starts_with("mod tests")).count();
            assert!(
                lines <= LINES_MAX || path.ends_with("tests.rs"),
                "{}: {lines} lines; at most {LINES_MAX}",
                path.display()
            );
            assert!(text.starts_with("//!"), "{}: says not what it is for (//! at the top)", path.display());
            seen += 1;
        }
    }
    assert!(seen > 40, "only {seen} files were looked at");
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
    out
}
