//! README's "On machines of yours" is what the demo runs: a line there that the demo does not have is a line that nobody
//! has tried.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::path::Path;

fn read(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)).unwrap()
}

/// The lines between ```sh and ``` of a section.
fn lines(readme: &str, section: &str) -> Vec<String> {
    let body = readme.split(section).nth(1).unwrap().split("\n## ").next().unwrap();
    body.split("```sh\n")
        .skip(1)
        .flat_map(|code| code.split("```").next().unwrap().lines())
        .map(str::to_owned)
        .collect()
}

/// The demo's commands, one a line, as a person types them.
fn demo() -> Vec<Vec<String>> {
    let mut text = [read("deploy/demo.sh"), read("deploy/members.sh")].concat();
    text = text.replace("\\\n", " ").replace('"', "");
    let host = [("${node_listen:-127.0.0.1}", "0.0.0.0"), ("$(port $node_port $n)", "8444")];
    for (shell, typed) in host.into_iter().chain([("$bin/", ""), ("$node_port", "8444"), ("$token", "cvj_…")]) {
        text = text.replace(shell, typed);
    }
    let words = |line: &str| -> Vec<String> { line.split([' ', '(']).map(str::to_owned).collect() };
    text.lines()
        .map(|line| words(line).into_iter().map(|w| if w == "ctl" { "cvlanctl".into() } else { w }).collect())
        .collect()
}

/// Every word of `command`, in its order; where the machine is differs.
fn runs(line: &[String], command: &str) -> bool {
    let mut words = line.iter();
    command.split_whitespace().all(|wanted| match wanted.strip_prefix("https://ctl.example.net") {
        Some(port) => words.any(|word| word.starts_with("https://") && word.ends_with(port)),
        None => words.any(|word| word == wanted),
    })
}

#[test]
fn the_readme_says_what_the_demo_runs() {
    let (lines, demo) = (lines(&read("README.md"), "\n## On machines of yours\n"), demo());
    assert_eq!(lines.len(), 4, "{lines:?}");
    for command in lines.iter().flat_map(|line| line.split('&')).map(str::trim).filter(|command| !command.is_empty()) {
        assert!(demo.iter().any(|line| runs(line, command)), "the demo does not run: {command}");
    }
}
