//! A space-time picture of a seed, as one HTML file that needs nothing else: machines beside each other, time downwards.
//!
//! ```text
//!      s0    s1    s2
//!      █     █     ░        █ a member is open, ▌ leads, ░ a fault
//!      █▌────▶█             frames, answers; the tool tips say what
//! ```
//! Drawn twice: the whole run without frames, and the last seconds with all of them.

use crate::report::Report;
use crate::setup::{Setup, reproduce};
use crate::trace::{Mark, Sign};
use std::fmt::Write;

const LANE: u64 = 140;
const LEFT: u64 = 90;

/// The last seconds that are drawn with frames, µs.
const CLOSE_US: u64 = 4_000_000;

struct View {
    from_us: u64,
    to_us: u64,
    height: u64,
    frames: bool,
}

impl View {
    fn y(&self, us: u64) -> u64 {
        let us = us.clamp(self.from_us, self.to_us) - self.from_us;
        20 + us * self.height / (self.to_us - self.from_us).max(1)
    }

    fn shows(&self, from_us: u64, to_us: u64) -> bool {
        to_us >= self.from_us && from_us <= self.to_us
    }
}

/// The picture of a report whose trace was kept.
pub fn html(report: &Report, setup: &Setup) -> String {
    let end_us = report.virtual_ms * 1000;
    let whole = View { from_us: 0, to_us: end_us, height: 1_400, frames: false };
    let close = View { from_us: end_us.saturating_sub(CLOSE_US), to_us: end_us, height: 6_000, frames: true };
    let violation = report.violation.as_deref().unwrap_or("no broken promise");
    let faults: Vec<String> = report.faults.iter().enumerate().map(|(n, fault)| format!("{n:>3} {fault}")).collect();
    let mut page = String::from(STYLE);
    // Writing into a String cannot fail.
    let _ = write!(
        page,
        "<h1>Seed {}: {}</h1><pre>{}</pre><p>{} ms of virtual time, {} lines of trace. {}</p>\
         <details><summary>{} faults</summary><pre>{}</pre></details><h2>All of it</h2>{}<h2>The last {} ms</h2>{}",
        report.seed,
        escape(violation),
        escape(&reproduce(report.seed, setup)),
        report.virtual_ms,
        report.lines,
        escape(&report.counts.line()),
        faults.len(),
        escape(&faults.join("\n")),
        svg(&report.marks, &whole),
        CLOSE_US / 1000,
        svg(&report.marks, &close),
    );
    page
}

fn svg(marks: &[Mark], view: &View) -> String {
    let lanes = marks.iter().filter_map(|mark| mark.lane).max().map_or(1, |last| last as u64 + 1);
    let (width, height) = (LEFT + lanes * LANE, view.height + 40);
    let mut out = format!("<svg width=\"{width}\" height=\"{height}\" xmlns=\"http://www.w3.org/2000/svg\">");
    for lane in 0..lanes {
        let x = x(lane as usize);
        let _ = write!(
            out,
            "<text x=\"{x}\" y=\"12\">s{lane}</text><line x1=\"{x}\" x2=\"{x}\" y1=\"20\" y2=\"{height}\" class=\"lane\"/>"
        );
    }
    for step in 0..=20 {
        let us = view.from_us + (view.to_us - view.from_us) * step / 20;
        let y = view.y(us);
        let _ = write!(
            out,
            "<text x=\"2\" y=\"{y}\">{} ms</text><line x1=\"{LEFT}\" x2=\"{width}\" y1=\"{y}\" y2=\"{y}\" class=\"grid\"/>",
            us / 1000
        );
    }
    for (at, mark) in marks.iter().enumerate() {
        draw(&mut out, view, mark, marks.get(at + 1..).unwrap_or_default(), width);
    }
    out + "</svg>"
}

fn x(lane: usize) -> u64 {
    LEFT + LANE / 2 + lane as u64 * LANE
}

fn draw(out: &mut String, view: &View, mark: &Mark, later: &[Mark], width: u64) {
    let title = format!("{} µs: {}", mark.at_us, escape(&mark.text));
    let lane = x(mark.lane.unwrap_or_default());
    // Until the next mark on the same machine that ends it.
    let until = |ends: fn(&Sign) -> bool| {
        let next = later.iter().find(|other| other.lane == mark.lane && ends(&other.sign));
        next.map_or(view.to_us, |other| other.at_us)
    };
    let mut bar = |class: &str, x: u64, wide: u64, from_us: u64, to_us: u64| {
        if view.shows(from_us, to_us) {
            let (y, end) = (view.y(from_us), view.y(to_us));
            let tall = (end - y).max(2);
            let _ = write!(
                out,
                "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{wide}\" height=\"{tall}\"><title>{title}</title></rect>"
            );
        }
    };
    match mark.sign {
        Sign::Up => bar("up", lane - 5, 10, mark.at_us, until(|sign| matches!(sign, Sign::Down))),
        Sign::Leads(_) => {
            let ends = |sign: &Sign| matches!(sign, Sign::Down | Sign::Follows | Sign::Leads(_));
            bar("leads", lane + 5, 5, mark.at_us, until(ends));
        }
        Sign::Fault(to_us) => match mark.lane {
            Some(_) => bar("fault", lane - 30, 20, mark.at_us, to_us),
            None => bar("fault", LEFT, width - LEFT, mark.at_us, to_us),
        },
        Sign::Answer(since_us) if view.frames => bar("answer", lane + 14, 4, since_us, mark.at_us),
        Sign::Violation => bar("violation", LEFT, width - LEFT, mark.at_us, mark.at_us),
        Sign::Frame(from, sent_us) if view.frames && view.shows(sent_us, mark.at_us) => {
            let (x1, y1, y2) = (x(from), view.y(sent_us), view.y(mark.at_us));
            let _ = write!(
                out,
                "<line class=\"frame\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{lane}\" y2=\"{y2}\"><title>{title}</title></line>"
            );
        }
        Sign::Down | Sign::Follows | Sign::Answer(_) | Sign::Frame(..) => {}
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

const STYLE: &str = "<!doctype html><meta charset=\"utf-8\"><title>CVLAN simulation</title><style>\
body{font:14px sans-serif;margin:1em}h1{font-size:1.2em}pre{white-space:pre-wrap}text{font-size:10px}\
.lane{stroke:#bbb}.grid{stroke:#eee}.up{fill:#9cc99c}.leads{fill:#d9a400}.fault{fill:#d33;opacity:.3}\
.answer{fill:#36c}.violation{fill:#d00}.frame{stroke:#668;stroke-width:.7}.frame:hover{stroke:#f0f;stroke-width:3}\
</style>";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Tally;

    #[test]
    fn what_happened_is_in_the_picture() {
        let mark = |at_us, lane, sign, text: &str| Mark { at_us, lane, sign, text: text.to_owned() };
        let marks = vec![
            mark(1_000, Some(0), Sign::Up, "m1 is open"),
            mark(2_000, Some(0), Sign::Leads(3), "leads"),
            mark(5_000, Some(1), Sign::Frame(0, 4_000), "frame <7>"),
            mark(6_000, None, Sign::Fault(9_000), "Blackout"),
            mark(8_000, Some(0), Sign::Down, "m1 ended"),
            mark(10_000, None, Sign::Violation, "VIOLATION a < b"),
        ];
        let report = Report {
            seed: 7,
            digest: [0; 32],
            lines: 6,
            text: None,
            marks,
            faults: vec!["Blackout".to_owned()],
            virtual_ms: 10,
            violation: Some("a < b".to_owned()),
            counts: Tally::default(),
        };
        let page = html(&report, &Setup::cluster());
        for part in ["a &lt; b", "class=\"up\"", "class=\"leads\"", "frame &lt;7&gt;", "--seed 7", "class=\"fault\""] {
            assert!(page.contains(part), "{part}");
        }
        assert_eq!(page.matches("class=\"frame\"").count(), 1, "frames are drawn in the close view alone");
    }
}
