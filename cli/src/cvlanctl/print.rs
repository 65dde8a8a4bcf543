//! Output: stdout is data, stderr is talk. One list of columns a noun; table and wide are made of it, JSON and YAML are
//! the controller's own words (proto3 JSON), `name` is what a script puts into the next command.

use crate::Global;
use crate::failure::Failure;
use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{IsTerminal, Write};

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people: one thing a line
    #[default]
    Table,
    /// All columns
    Wide,
    /// As the API says it; lists are {"items": […]}
    Json,
    /// The same as YAML
    Yaml,
    /// Names (or ids) alone, one a line
    Name,
}

/// Names of things that others mention by id.
#[derive(Debug, Default)]
pub struct Names(HashMap<String, String>);

impl Names {
    /// Takes the names of listed things.
    pub fn of(items: &[Value]) -> Self {
        Self(items.iter().map(|i| (text(i, "id"), text(i, "name"))).collect())
    }

    /// The name, else the id.
    pub fn name(&self, id: &str) -> String {
        self.0.get(id).filter(|n| !n.is_empty()).cloned().unwrap_or_else(|| id.to_owned())
    }
}

/// One column of a noun.
pub struct Column {
    /// In lower case; `--columns` names it.
    pub name: &'static str,
    /// Only in wide tables.
    pub wide: bool,
    /// What stands in it.
    pub value: fn(&Value, &Names) -> String,
}

/// A kind of thing, as people see it.
pub struct Noun {
    /// Singular: node.
    pub name: &'static str,
    /// Plural, as in the API's paths: nodes.
    pub path: &'static str,
    /// The field of its name; a token has none but its id.
    pub key: &'static str,
    /// In their order.
    pub columns: &'static [Column],
}

impl Noun {
    /// The name of one of them.
    pub fn name_of(&self, item: &Value) -> String {
        text(item, self.key)
    }

    /// The columns that the command asks for.
    pub fn chosen(&self, global: &Global) -> Result<Vec<&'static Column>, Failure> {
        if global.columns.is_empty() {
            let wide = global.output == Format::Wide;
            return Ok(self.columns.iter().filter(|c| wide || !c.wide).collect());
        }
        let find = |wanted: &String| {
            self.columns.iter().find(|c| c.name.eq_ignore_ascii_case(wanted.trim())).ok_or_else(|| {
                let known = self.columns.iter().map(|c| c.name).collect::<Vec<_>>().join(", ");
                Failure::usage(format!("there is no column {wanted:?}; there are {known}"))
            })
        };
        global.columns.iter().map(find).collect()
    }

    /// A list.
    pub fn list(&self, global: &Global, items: Vec<Value>, names: &Names) -> Result<(), Failure> {
        let columns = self.chosen(global)?;
        match global.output {
            Format::Table | Format::Wide => self.rows(global, &columns, &items, names),
            Format::Json | Format::Yaml => document(global.output, &json!({ "items": items })),
            Format::Name => lines(items.iter().map(|i| self.name_of(i))),
        }
    }

    /// One thing, as a row.
    pub fn row(&self, global: &Global, item: &Value, names: &Names) -> Result<(), Failure> {
        let columns = self.chosen(global)?;
        match global.output {
            Format::Table | Format::Wide => self.rows(global, &columns, std::slice::from_ref(item), names),
            Format::Json | Format::Yaml => document(global.output, item),
            Format::Name => lines([self.name_of(item)]),
        }
    }

    /// One thing, all of it: a column a line.
    pub fn sheet(&self, global: &Global, item: &Value, names: &Names) -> Result<(), Failure> {
        if global.output != Format::Table || !global.columns.is_empty() {
            return self.row(global, item, names);
        }
        let facts: Vec<_> = self.columns.iter().map(|c| (c.name, (c.value)(item, names))).collect();
        sheet(&facts)
    }

    fn rows(&self, global: &Global, columns: &[&Column], items: &[Value], names: &Names) -> Result<(), Failure> {
        if items.is_empty() {
            talk(&format!("no {}", self.path));
            return Ok(());
        }
        let heads = columns.iter().map(|c| c.name.to_uppercase()).collect();
        let rows = items.iter().map(|i| columns.iter().map(|c| (c.value)(i, names)).collect());
        table((!global.no_headers).then_some(heads), rows)
    }
}

/// Aligned columns, one row one line.
pub fn table(heads: Option<Vec<String>>, rows: impl Iterator<Item = Vec<String>>) -> Result<(), Failure> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if let Some(heads) = heads {
        table.set_header(heads);
    }
    for row in rows {
        // Nothing in the middle of a row is "-", so that scripts can count columns.
        let last = row.len().saturating_sub(1);
        let cells = row.iter().enumerate();
        table.add_row(cells.map(|(i, cell)| if cell.is_empty() && i < last { "-".to_owned() } else { plain(cell) }));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    lines(table.lines().map(|line| line.trim_end().to_owned()))
}

/// `name   value`, a fact a line; empty ones are left out.
pub fn sheet(facts: &[(&str, String)]) -> Result<(), Failure> {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let known = facts.iter().filter(|(_, value)| !value.is_empty());
    lines(known.map(|(name, value)| format!("{name:<width$}  {}", plain(value))))
}

/// JSON or YAML.
pub fn document(format: Format, value: &Value) -> Result<(), Failure> {
    let text = match format {
        Format::Yaml => serde_saphyr::to_string(value).map_err(|e| Failure::new("yaml", e.to_string()))?,
        Format::Table | Format::Wide | Format::Json | Format::Name => {
            serde_json::to_string_pretty(value).map_err(|e| Failure::new("json", e.to_string()))?
        }
    };
    lines([text.trim_end().to_owned()])
}

/// Data, line by line.
pub fn lines(lines: impl IntoIterator<Item = String>) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for line in lines {
        writeln!(out, "{line}")?;
    }
    Ok(out.flush()?)
}

/// Talk: what was done, warnings, hints.
pub fn talk(text: &str) {
    // Nobody listens: nothing to be done about it.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// May a person be asked?
pub fn is_dialogue() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Text of others on a terminal: one line, and no control character of theirs works.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A field as text; absent = empty.
pub fn text(item: &Value, name: &str) -> String {
    match item.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(s)) => s.clone(),
        Some(Value::Array(all)) => {
            all.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect::<Vec<_>>().join(",")
        }
        Some(other @ (Value::Bool(_) | Value::Number(_) | Value::Object(_))) => other.to_string(),
    }
}

/// A number, as JSON number or (64 bits, proto3 JSON) string; absent = 0.
pub fn number(item: &Value, name: &str) -> u64 {
    match item.get(name) {
        Some(Value::String(s)) => s.parse().unwrap_or_default(),
        Some(v) => v.as_u64().unwrap_or_default(),
        None => 0,
    }
}

/// A time (RFC 3339, UTC) to the second: 2026-01-31 09:15:00Z.
pub fn time(item: &Value, name: &str) -> String {
    let text = text(item, name);
    let utc = text.ends_with('Z') || text.ends_with("+00:00");
    match (text.get(..10), text.get(11..19)) {
        (Some(day), Some(clock)) if utc => format!("{day} {clock}Z"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_as_text() {
        let item = json!({"s": "x", "list": ["a", "b"], "n": "12", "m": 3, "t": "2026-01-31T09:15:00.123Z", "b": true, "u": "2026-01-31T09:15:00+00:00", "v": "2026-01-31T09:15:00+01:00"});
        for (name, wanted) in [("s", "x"), ("list", "a,b"), ("n", "12"), ("m", "3"), ("b", "true"), ("absent", "")] {
            assert_eq!(text(&item, name), wanted, "{name}");
        }
        assert_eq!((number(&item, "n"), number(&item, "m"), number(&item, "absent")), (12, 3, 0));
        for (name, wanted) in [
            ("t", "2026-01-31 09:15:00Z"),
            ("u", "2026-01-31 09:15:00Z"),
            ("v", "2026-01-31T09:15:00+01:00"),
            ("absent", ""),
        ] {
            assert_eq!(time(&item, name), wanted);
        }
    }

    #[test]
    fn nobody_elses_control_character_works() {
        assert_eq!(plain("a\u{1b}[31mb\nc"), "a\u{fffd}[31mb\u{fffd}c");
        assert_eq!(plain("grün ✓"), "grün ✓");
    }
}
