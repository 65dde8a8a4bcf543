//! `cvlanctl events`: the log as a timeline; a page, or live.

use crate::Global;
use crate::client::{Client, LIST_MAX, PAGE_MAX, segment};
use crate::failure::Failure;
use crate::print::{Column, Format, Names, Noun, document, lines, number, plain, talk, text};
use crate::tenant::limit_range;
use crate::what::Known;
use clap::Args;
use reqwest::Response;
use serde_json::{Value, json};
use std::time::Duration;

/// Events shown where nothing else is asked for.
const LAST: usize = 100;
/// How far back in the log those are looked for.
const SPAN_MAX: u64 = 100_000;
/// The controller says something every 15 s: after so much silence the connection is dead.
const SILENCE: Duration = Duration::from_secs(45);
/// The longest line of a stream.
const LINE_MAX: usize = 4 << 20;
/// How long to wait before connecting again.
const AGAIN: Duration = Duration::from_secs(2);

/// `cvlanctl events`
#[derive(Args)]
#[command(after_help = "\
Examples:
  cvlanctl events                                  the last 100
  cvlanctl -t acme events --from 1                 all of acme's
  cvlanctl events --follow                         from now on, until Ctrl-C
  cvlanctl events --follow --from 500 -o json      from event 500 on, one JSON object a line")]
pub struct Events {
    /// Go on with what happens; --limit ends it after so many
    #[arg(short, long)]
    follow: bool,
    /// The first event
    #[arg(long, value_name = "SEQ", value_parser = clap::value_parser!(u64).range(1..))]
    from: Option<u64>,
    /// At most so many [default: the last 100; all with --from]
    #[arg(long, value_name = "N", value_parser = limit_range())]
    limit: Option<usize>,
}

/// An event, as people see it: made by [`Known::line`].
pub const NOUN: Noun = Noun {
    name: "event",
    path: "events",
    key: "seq",
    columns: &[
        Column { name: "seq", wide: false, value: |i, _| text(i, "seq") },
        Column { name: "time", wide: false, value: |i, _| text(i, "time") },
        Column { name: "tenant", wide: false, value: |i, _| text(i, "tenant") },
        Column { name: "actor", wide: false, value: |i, _| text(i, "actor") },
        Column { name: "what", wide: false, value: |i, _| text(i, "what") },
        Column { name: "reason", wide: false, value: |i, _| text(i, "reason") },
        Column { name: "source", wide: true, value: |i, _| text(i, "source") },
        Column { name: "request", wide: true, value: |i, _| text(i, "request") },
    ],
};

impl Events {
    /// Does it.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let mut client = Client::open(global)?;
        // Also tells where the log is: the answer's checkpoint.
        client.get("/me").await?;
        let head = client.context.checkpoint.rsplit_once('.').and_then(|(_, s)| s.parse().ok()).unwrap_or(0u64);
        // The default tenant does not narrow the view; -t does.
        let tenant = match &global.tenant {
            Some(name) => Some(text(&client.get(&format!("/tenants/{}", segment(name)?)).await?, "id")),
            None => None,
        };
        let whose = |event: &Value| tenant.as_ref().is_none_or(|id| text(event, "tenantId") == *id);
        if self.follow {
            let (from, limit) = (self.from.unwrap_or(head + 1), self.limit.unwrap_or(usize::MAX));
            return Follow::new(global, from, limit)?.run(client, whose).await;
        }
        let limit = self.limit.unwrap_or(if self.from.is_some() { LIST_MAX } else { LAST });
        let events = match self.from {
            Some(from) => pages(&mut client, &format!("/log/events?from={from}"), limit, whose).await?.0,
            None => last(&mut client, head, limit, whose).await?,
        };
        show(&mut client, global, events).await
    }
}

/// The last ones that the caller may see, looked for further and further back.
async fn last(
    client: &mut Client,
    head: u64,
    limit: usize,
    whose: impl Fn(&Value) -> bool,
) -> Result<Vec<Value>, Failure> {
    let mut span = limit as u64;
    loop {
        let from = head.saturating_sub(span) + 1;
        let path = format!("/log/events?from={from}&to={head}");
        let mut found = pages(client, &path, span as usize, &whose).await?.0;
        if found.len() >= limit || from == 1 || span >= SPAN_MAX {
            return Ok(found.split_off(found.len().saturating_sub(limit)));
        }
        span = (span * 8).min(SPAN_MAX);
    }
}

/// Events, page by page, and the first that they may be complete from.
pub async fn pages(
    client: &mut Client,
    path: &str,
    limit: usize,
    whose: impl Fn(&Value) -> bool,
) -> Result<(Vec<Value>, u64), Failure> {
    let (mut events, mut next, mut complete_from) = (Vec::new(), 0, 1);
    loop {
        // A later page names where it starts, instead of where the first one did.
        let at = match next {
            0 => path.to_owned(),
            next => format!("{}&from={next}", without_from(path)),
        };
        let mut page = client.read(&format!("{at}&limit={PAGE_MAX}")).await?;
        complete_from = complete_from.max(page.complete_from);
        next = number(&page.body, "nextSeq");
        if let Some(Value::Array(items)) = page.body.get_mut("items").map(Value::take) {
            events.extend(items.into_iter().filter(|e| whose(e)));
        }
        if next == 0 || events.len() >= limit {
            events.truncate(limit);
            return Ok((events, complete_from));
        }
    }
}

fn without_from(path: &str) -> String {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let kept: Vec<_> = query.split('&').filter(|pair| !pair.starts_with("from=") && !pair.is_empty()).collect();
    format!("{path}?{}", kept.join("&"))
}

/// Prints events: as they are, or as a table of lines.
pub async fn show(client: &mut Client, global: &Global, events: Vec<Value>) -> Result<(), Failure> {
    match global.output {
        Format::Json | Format::Yaml => document(global.output, &json!({ "items": events })),
        Format::Name => lines(events.iter().map(|e| text(e, "seq"))),
        Format::Table | Format::Wide => {
            let (mut known, mut rows) = (Known::default(), Vec::with_capacity(events.len()));
            for event in &events {
                rows.push(known.line(client, event).await?);
            }
            NOUN.list(global, rows, &Names::default())
        }
    }
}

/// A timeline that goes on.
struct Follow<'a> {
    global: &'a Global,
    columns: Vec<&'static Column>,
    known: Known,
    next: u64,
    left: usize,
}

impl<'a> Follow<'a> {
    fn new(global: &'a Global, next: u64, left: usize) -> Result<Self, Failure> {
        Ok(Self { global, columns: NOUN.chosen(global)?, known: Known::default(), next, left })
    }

    async fn run(mut self, mut client: Client, whose: impl Fn(&Value) -> bool) -> Result<(), Failure> {
        let table = matches!(self.global.output, Format::Table | Format::Wide);
        if table && !self.global.no_headers {
            let heads: Vec<_> = self.columns.iter().map(|c| (c.name, c.name.to_uppercase())).collect();
            lines([padded(&heads)])?;
        }
        let mut stream = Some(client.follow(&self.path()).await?);
        while self.left > 0 {
            match stream.take() {
                Some(live) => self.read(&mut client, live, &whose).await?,
                None => tokio::time::sleep(AGAIN).await,
            }
            if self.left == 0 {
                break;
            }
            // It ended: a session's time was over, the controller stopped, or the network did. Nothing is left out.
            stream = match client.follow(&self.path()).await {
                Ok(live) => Some(live),
                Err(failure)
                    if matches!(failure.code.as_str(), "unreachable" | "timeout") || failure.retry_after.is_some() =>
                {
                    talk(&format!("cvlanctl: {failure}; trying again"));
                    None
                }
                Err(failure) => return Err(failure),
            };
        }
        Ok(())
    }

    fn path(&self) -> String {
        format!("/log/events?follow=true&from={}", self.next)
    }

    /// Until the stream ends.
    async fn read(
        &mut self,
        client: &mut Client,
        mut live: Response,
        whose: impl Fn(&Value) -> bool,
    ) -> Result<(), Failure> {
        let mut lines = Lines::default();
        while let Ok(Ok(Some(piece))) = tokio::time::timeout(SILENCE, live.chunk()).await {
            for data in lines.events(&piece)? {
                let Ok(event) = serde_json::from_str::<Value>(&data) else { continue };
                self.next = number(&event, "seq") + 1;
                if whose(&event) {
                    self.show(client, &event).await?;
                    self.left -= 1;
                }
                if self.left == 0 {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn show(&mut self, client: &mut Client, event: &Value) -> Result<(), Failure> {
        match self.global.output {
            Format::Json => lines([event.to_string()]),
            Format::Yaml => {
                lines(["---".to_owned()])?;
                document(Format::Yaml, event)
            }
            Format::Name => lines([text(event, "seq")]),
            Format::Table | Format::Wide => {
                let line = self.known.line(client, event).await?;
                let cells = self.columns.iter().map(|c| (c.name, (c.value)(&line, &Names::default())));
                lines([padded(&cells.collect::<Vec<_>>())])
            }
        }
    }
}

/// Columns of a table whose rows are not known yet.
fn padded(cells: &[(&str, String)]) -> String {
    let mut line = String::new();
    for (name, cell) in cells {
        let width = match *name {
            "seq" => 7,
            "time" => 20,
            "tenant" | "actor" => 14,
            "what" => 64,
            _ => 24,
        };
        line.push_str(&format!("{:<width$}  ", plain(cell)));
    }
    line.trim_end().to_owned()
}

/// Server-sent events (WHATWG HTML §9.2), as far as the controller writes them: `event: event` with one line of data.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
    kind: String,
    data: String,
}

impl Lines {
    /// Data of the log's events that this piece completes.
    fn events(&mut self, piece: &[u8]) -> Result<Vec<String>, Failure> {
        let mut complete = Vec::new();
        self.rest.extend_from_slice(piece);
        while let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\r', '\n']);
            match line.split_once(':').map(|(name, value)| (name, value.strip_prefix(' ').unwrap_or(value))) {
                Some(("event", kind)) => kind.clone_into(&mut self.kind),
                Some(("data", data)) => data.clone_into(&mut self.data),
                // Comments keep the line alive; the data has its number itself.
                Some(_) => {}
                None => {
                    let (kind, data) = (std::mem::take(&mut self.kind), std::mem::take(&mut self.data));
                    if line.is_empty() && kind == "event" {
                        complete.push(data);
                    }
                }
            }
        }
        match self.rest.len() > LINE_MAX {
            true => {
                Err(Failure::new("answer_too_large", format!("a line of the stream is longer than {LINE_MAX} bytes")))
            }
            false => Ok(complete),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_read_however_it_is_cut() {
        let stream = ":\n\nid: 7\nevent: event\ndata: {\"seq\":\"7\"}\n\nevent: presence\ndata: {\"nodeId\":\"n\"}\n\n:\n\n\
                      id: 8\nevent: event\ndata: {\"reason\":\"ü: x\"}\n\n";
        for size in 1..stream.len() {
            let mut lines = Lines::default();
            let read: Vec<_> = stream.as_bytes().chunks(size).flat_map(|p| lines.events(p).unwrap()).collect();
            assert_eq!(read, ["{\"seq\":\"7\"}", "{\"reason\":\"ü: x\"}"], "pieces of {size}");
        }
        assert_eq!(Lines::default().events(&vec![b'x'; LINE_MAX + 1]).unwrap_err().code, "answer_too_large");
    }

    #[test]
    fn a_later_page_starts_elsewhere() {
        assert_eq!(without_from("/log/events?from=1&to=9"), "/log/events?to=9");
        assert_eq!(without_from("/log/events?noun=node&id=x"), "/log/events?noun=node&id=x");
    }
}
