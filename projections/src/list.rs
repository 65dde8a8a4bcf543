//! Lists: one page of a table for one tenant, filtered, sorted, and a cursor to go on with.
//!
//! Paging is by key, never by offset: a cursor names the last row's sort value and id, so that rows that come or go
//! between two pages neither repeat nor hide others.

use crate::error::Error;
use crate::table::{Reader, Table, Value, int};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use cvlan_core::id::{Checkpoint, CvlanId, TenantId};
use uuid::Uuid;

/// Rows of a page where the caller names no number.
pub const LIMIT_DEFAULT: usize = 100;
/// Rows of a page at most.
pub const LIMIT_MAX: usize = 1000;
/// Longest search text, bytes.
pub const SEARCH_MAX: usize = 256;

/// What a list is asked for. `Default` = the first page of everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Only what is in this CVLAN (nodes, tokens).
    pub cvlan: Option<CvlanId>,
    /// Only what has this status (nodes: active, disabled; tokens: active, expired, used_up). Empty = all.
    pub status: String,
    /// Only what has this text in its name, host name, address or note (case does not matter), or an id that starts
    /// with it. Empty = all.
    pub q: String,
    /// One of the table's sorts, `-` in front for descending. Empty = the first of them.
    pub sort: String,
    /// Rows, at most [`LIMIT_MAX`]; 0 = [`LIMIT_DEFAULT`].
    pub limit: usize,
    /// The page before's [`Page::next_cursor`]. Empty = from the beginning.
    pub cursor: String,
    /// Event time that tokens are judged at, milliseconds since 1970 (UTC).
    pub now_ms: u64,
}

/// One page.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    /// The rows, in order.
    pub items: Vec<T>,
    /// Rows on all pages.
    pub total: u64,
    /// Goes into the next [`Query::cursor`]; empty on the last page.
    pub next_cursor: String,
    /// How fresh the page is.
    pub checkpoint: Checkpoint,
}

/// SQL with its arguments, numbered as they come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sql {
    pub(crate) text: String,
    pub(crate) args: Vec<Value>,
}

impl Sql {
    pub(crate) fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    pub(crate) fn arg(&mut self, value: Value) {
        self.args.push(value);
        self.text.push_str(&format!("${}", self.args.len()));
    }
}

/// A database that lists are read from; the caller holds one transaction, so that all is of the same moment.
pub(crate) trait Ask {
    /// Gives `each` the rows, until it says false.
    fn ask(&self, sql: &Sql, each: &mut dyn FnMut(&mut Reader<'_>) -> Result<bool, Error>) -> Result<(), Error>;
}

/// What [`statements`] made of a query.
pub(crate) struct Statements {
    pub(crate) count: Sql,
    pub(crate) page: Sql,
    sort: String,
    limit: usize,
}

/// One page of `table`. `home`: whose rows; `None` = everybody's (the list of tenants, for who may see them all).
pub(crate) fn page<T>(
    db: &impl Ask,
    table: &Table,
    home: Option<TenantId>,
    query: &Query,
    read: fn(&mut Reader<'_>, u64) -> Result<T, Error>,
) -> Result<Page<T>, Error> {
    let made = statements(table, home, query)?;
    let (mut total, mut items, mut next_cursor) = (0, Vec::new(), String::new());
    db.ask(&made.count, &mut |row| {
        total = row.number()?;
        Ok(false)
    })?;
    let mut last = None;
    db.ask(&made.page, &mut |row| {
        if items.len() == made.limit {
            next_cursor = last.take().unwrap_or_default();
            return Ok(false);
        }
        items.push(read(row, query.now_ms)?);
        if items.len() == made.limit {
            last = Some(cursor_write(&made.sort, row)?);
        }
        Ok(true)
    })?;
    let (checkpoint, _) = crate::meta::read(db)?;
    Ok(Page { items, total, next_cursor, checkpoint })
}

/// The two statements of a page.
pub(crate) fn statements(table: &Table, home: Option<TenantId>, query: &Query) -> Result<Statements, Error> {
    let (sort, column, descending) = sort_of(table, &query.sort)?;
    let limit = if query.limit == 0 { LIMIT_DEFAULT } else { query.limit.min(LIMIT_MAX) };
    let mut filter = Sql::default();
    filters(&mut filter, table, home, query)?;

    let mut count = Sql { text: format!("SELECT COUNT(*) FROM {}", table.name), args: Vec::new() };
    count.push(&filter.text);
    count.args.clone_from(&filter.args);

    // The sort value and the id come last, for the cursor.
    let text = format!("SELECT {}, {column}, {} FROM {}", table.listed(), table.key(), table.name);
    let mut page = Sql { text, args: filter.args };
    page.push(&filter.text);
    if !query.cursor.is_empty() {
        let (value, id) = cursor_read(&query.cursor, &sort)?;
        page.push(&format!(" AND ({column}, id) {} (", if descending { "<" } else { ">" }));
        page.arg(value);
        page.push(", ");
        page.arg(Value::Bytes(id));
        page.push(")");
    }
    let way = if descending { " DESC" } else { "" };
    page.push(&format!(" ORDER BY {column}{way}, id{way} LIMIT "));
    page.arg(Value::Int(int(limit as u64 + 1)));
    Ok(Statements { count, page, sort, limit })
}

fn sort_of(table: &Table, asked: &str) -> Result<(String, &'static str, bool), Error> {
    let name = asked.strip_prefix('-').unwrap_or(asked);
    let found = table.sorts.iter().find(|(known, _)| name.is_empty() || *known == name);
    let unknown = || {
        let known = table.sorts.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", ");
        Error::Sort { sort: asked.to_owned(), known }
    };
    let (known, column) = found.ok_or_else(unknown)?;
    let descending = asked.starts_with('-');
    Ok((format!("{}{known}", if descending { "-" } else { "" }), column, descending))
}

fn filters(sql: &mut Sql, table: &Table, home: Option<TenantId>, query: &Query) -> Result<(), Error> {
    sql.push(" WHERE 1 = 1");
    if let Some(home) = home {
        sql.push(&format!(" AND {} = ", table.home));
        sql.arg(Value::Bytes(home.0.as_bytes().to_vec()));
    }
    if let Some(cvlan) = query.cvlan {
        if !table.by_cvlan {
            return Err(Error::Filter { filter: "cvlan", value: cvlan.to_string() });
        }
        sql.push(" AND cvlan = ");
        sql.arg(Value::Bytes(cvlan.0.as_bytes().to_vec()));
    }
    if !query.status.is_empty() {
        let unknown = || Error::Filter { filter: "status", value: query.status.clone() };
        let condition = (table.status)(&query.status).ok_or_else(unknown)?;
        sql.push(" AND ");
        for (i, part) in condition.split("{now}").enumerate() {
            if i > 0 {
                sql.arg(Value::Int(int(query.now_ms)));
            }
            sql.push(part);
        }
    }
    if query.q.len() > SEARCH_MAX {
        return Err(Error::Search(SEARCH_MAX));
    }
    if !query.q.is_empty() {
        search(sql, &query.q);
    }
    Ok(())
}

fn search(sql: &mut Sql, q: &str) {
    let q = q.to_lowercase();
    let mut pattern = String::from("%");
    for c in q.chars() {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('%');
    sql.push(" AND (search LIKE ");
    sql.arg(Value::Text(pattern));
    sql.push(" ESCAPE '\\'");
    if let Some((low, high)) = id_range(&q) {
        sql.push(" OR id BETWEEN ");
        sql.arg(Value::Bytes(low.to_vec()));
        sql.push(" AND ");
        sql.arg(Value::Bytes(high.to_vec()));
    }
    sql.push(")");
}

/// The first and last id that start with this text, if ids can.
fn id_range(text: &str) -> Option<([u8; 16], [u8; 16])> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let id = digits.len() <= 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let parse = |fill: &str| Uuid::parse_str(&format!("{digits}{}", fill.repeat(32 - digits.len()))).ok();
    match id && !digits.is_empty() {
        true => Some((parse("0")?.into_bytes(), parse("f")?.into_bytes())),
        false => None,
    }
}

/// base64url(sort \n id \n kind of value and value); the row is read up to its sort value.
fn cursor_write(sort: &str, row: &mut Reader<'_>) -> Result<String, Error> {
    let value = match row.value()? {
        Value::Int(n) => format!("i{n}"),
        Value::Text(text) => format!("t{text}"),
        Value::Null | Value::Bytes(_) => return Err(Error::Column("no sort value")),
    };
    let id = row.id()?;
    Ok(BASE64URL.encode(format!("{sort}\n{id}\n{value}")))
}

fn cursor_read(cursor: &str, sort: &str) -> Result<(Value, Vec<u8>), Error> {
    let read = || {
        let text = String::from_utf8(BASE64URL.decode(cursor).ok()?).ok()?;
        let mut parts = text.splitn(3, '\n');
        let (of, id, value) = (parts.next()?, parts.next()?, parts.next()?);
        let value = match value.split_at_checked(1)? {
            ("i", n) => Value::Int(n.parse().ok()?),
            ("t", text) => Value::Text(text.to_owned()),
            _ => return None,
        };
        (of == sort).then_some((value, Uuid::parse_str(id).ok()?.as_bytes().to_vec()))
    };
    read().ok_or(Error::Cursor)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::testing::{Lists, World, all, both};
    use crate::{cvlan, node, tenant, token, user};
    use rusqlite::Connection;
    use std::collections::BTreeSet;

    /// It prepares, and `$n` first appear in ascending order.
    pub(crate) fn prepares(db: &Connection, sql: &str) {
        let statement = db.prepare(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        for i in 1..=statement.parameter_count() {
            assert_eq!(statement.parameter_name(i), Some(format!("${i}").as_str()), "{sql}");
        }
    }

    fn plan(db: &Connection, sql: &str) -> String {
        let mut statement = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let steps: Vec<String> = statement.raw_query().mapped(|row| row.get(3)).map(Result::unwrap).collect();
        steps.join("; ")
    }

    #[test]
    fn every_shape_of_every_list_prepares() {
        let mut db = Connection::open_in_memory().unwrap();
        crate::sqlite::create(&mut db).unwrap();
        shapes().iter().for_each(|sql| prepares(&db, sql));
    }

    /// All that lists can ask.
    pub(crate) fn shapes() -> BTreeSet<String> {
        let mut shapes = BTreeSet::new();
        for table in [&tenant::TABLE, &cvlan::TABLE, &node::TABLE, &token::TABLE, &user::TABLE] {
            let statuses = ["", "active", "disabled", "expired", "used_up"];
            let sorts = table.sorts.iter().flat_map(|(sort, _)| [(*sort).to_owned(), format!("-{sort}")]);
            for sort in sorts {
                for (home, cvlan, status, q, cursor) in shapes_of(table, &statuses) {
                    let id = Uuid::from_u128(7);
                    let cursor = if cursor { BASE64URL.encode(format!("{sort}\n{id}\ntx")) } else { String::new() };
                    let query = Query { cvlan, status, q, sort: sort.clone(), cursor, ..Query::default() };
                    let made = statements(table, home, &query).unwrap();
                    shapes.extend([made.count.text, made.page.text]);
                }
            }
        }
        assert!(shapes.len() > 500, "{}", shapes.len());
        shapes
    }

    type Shape = (Option<TenantId>, Option<CvlanId>, String, String, bool);

    fn shapes_of(table: &Table, statuses: &[&str]) -> Vec<Shape> {
        let known = |s: &&&str| s.is_empty() || (table.status)(s).is_some();
        let mut shapes = Vec::new();
        for home in [None, Some(TenantId::default())] {
            for cvlan in [None, Some(CvlanId::default())].into_iter().filter(|c| c.is_none() || table.by_cvlan) {
                for status in statuses.iter().filter(known) {
                    for q in ["", "web", "ab12"] {
                        shapes.extend(
                            [false, true].map(|cursor| (home, cvlan, (*status).to_owned(), q.to_owned(), cursor)),
                        );
                    }
                }
            }
        }
        shapes
    }

    #[test]
    fn the_usual_lists_walk_an_index() {
        let mut db = Connection::open_in_memory().unwrap();
        crate::sqlite::create(&mut db).unwrap();
        let home = Some(TenantId::default());
        let in_cvlan = Some(CvlanId::default());
        for (table, home, cvlan) in [
            (&tenant::TABLE, None, None),
            (&cvlan::TABLE, home, None),
            (&node::TABLE, home, None),
            (&node::TABLE, home, in_cvlan),
            (&token::TABLE, home, None),
            (&user::TABLE, home, None),
        ] {
            for cursor in ["", "x"] {
                let sort = table.sorts[0].0;
                let cursor = if cursor.is_empty() {
                    String::new()
                } else {
                    BASE64URL.encode(format!("{sort}\n{}\ntx", Uuid::nil()))
                };
                let made = statements(table, home, &Query { cvlan, cursor, ..Query::default() }).unwrap();
                let plan = plan(&db, &made.page.text);
                assert!(plan.contains("USING INDEX") && !plan.contains("B-TREE"), "{}: {plan}", made.page.text);
            }
        }
    }

    /// The same questions to each kind of database.
    fn each(check: impl Fn(World, &dyn Lists)) {
        let folder = tempfile::tempdir().unwrap();
        for views in both(&World::new(11, 1500), folder.path()) {
            check(World::new(11, 1500), &*views);
        }
    }

    #[test]
    fn pages_cover_every_row_once_in_order() {
        each(check_pages_cover_every_row_once_in_order);
    }

    fn check_pages_cover_every_row_once_in_order(world: World, views: &dyn Lists) {
        let (home, state) = world.state.tenants.iter().max_by_key(|(_, t)| t.nodes.len()).unwrap();
        assert!(state.nodes.len() > 20, "{}", state.nodes.len());
        for (sort, _) in node::TABLE.sorts {
            for descending in [false, true] {
                let sort = format!("{}{sort}", if descending { "-" } else { "" });
                let query = Query { sort: sort.clone(), ..Query::default() };
                let whole = all(LIMIT_MAX, &query, |q| views.nodes(*home, q).unwrap());
                let ids: BTreeSet<_> = whole.iter().map(|n| n.id.clone()).collect();
                assert_eq!(ids, state.nodes.keys().map(ToString::to_string).collect());
                for limit in [1, 2, 3, 7, whole.len(), whole.len() + 1] {
                    assert_eq!(all(limit, &query, |q| views.nodes(*home, q).unwrap()), whole, "{sort} {limit}");
                }
                let by_name = whole.is_sorted_by(|a, b| if descending { a.name >= b.name } else { a.name <= b.name });
                assert!(by_name || !sort.ends_with("name"), "{sort}");
            }
        }
    }

    #[test]
    fn a_row_that_goes_hides_no_other() {
        each(check_a_row_that_goes_hides_no_other);
    }

    fn check_a_row_that_goes_hides_no_other(mut world: World, views: &dyn Lists) {
        let (home, _) = world.state.tenants.iter().max_by_key(|(_, t)| t.nodes.len()).unwrap();
        let home = *home;
        let whole = all(LIMIT_MAX, &Query::default(), |q| views.nodes(home, q).unwrap());
        let page = views.nodes(home, &Query { limit: 5, ..Query::default() }).unwrap();
        // The very row that the cursor names.
        let gone = page.items[4].id.parse().unwrap();
        let before = world.events.len();
        let delete = cvlan_core::node::NodeCommand::Delete { tenant: home, id: gone };
        assert!(world.run(cvlan_core::Wish::Node(delete)));
        views.fold(&world.state, &world.events[before..].iter().collect::<Vec<_>>()).unwrap();
        let query = Query { limit: LIMIT_MAX, cursor: page.next_cursor, ..Query::default() };
        assert_eq!(views.nodes(home, &query).unwrap().items, whole[5..]);
    }

    #[test]
    fn filters_and_searches_are_what_the_state_says() {
        each(check_filters_and_searches_are_what_the_state_says);
    }

    fn check_filters_and_searches_are_what_the_state_says(world: World, views: &dyn Lists) {
        for (home, state) in &world.state.tenants {
            for status in ["active", "disabled"] {
                let query = Query { status: status.into(), ..Query::default() };
                let found = all(50, &query, |q| views.nodes(*home, q).unwrap());
                assert_eq!(found.len(), state.nodes.values().filter(|n| n.status.as_str() == status).count());
            }
            for now_ms in [world.now_ms, world.now_ms + 400_000, u64::MAX] {
                for status in ["active", "expired", "used_up"] {
                    let query = Query { status: status.into(), now_ms, ..Query::default() };
                    let found = all(50, &query, |q| views.tokens(*home, q).unwrap());
                    assert!(found.iter().all(|t| t.status == status));
                    assert_eq!(
                        found.len(),
                        state.tokens.values().filter(|t| t.to_proto(now_ms).status == status).count()
                    );
                }
            }
            for (id, cvlan) in &state.cvlans {
                let query = Query { cvlan: Some(*id), ..Query::default() };
                let found: BTreeSet<_> =
                    all(3, &query, |q| views.nodes(*home, q).unwrap()).into_iter().map(|n| n.id).collect();
                let here = state.nodes.values().filter(|node| node.cvlan == cvlan.record.id);
                assert_eq!(found, here.map(|node| node.id.to_string()).collect());
            }
            for node in state.nodes.values() {
                let id = node.id.to_string();
                for q in [&*node.name, &node.name.to_uppercase(), &id[..8], &id[..13], &id, &node.ipv4.to_string()] {
                    let query = Query { q: q.to_owned(), ..Query::default() };
                    let found = all(50, &query, |q| views.nodes(*home, q).unwrap());
                    assert!(found.iter().any(|n| n.id == id), "{q}");
                    let fits = |n: &cvlan_proto::v1::Node| {
                        let q = q.to_lowercase();
                        n.name.contains(&q) || n.id.starts_with(&q) || n.ipv4.contains(&q) || n.ipv6.contains(&q)
                    };
                    assert!(found.iter().all(fits), "{q}");
                }
            }
            for q in ["%", "_", "\\", "'", "no such", "%%' OR 1 = 1 --"] {
                assert_eq!(views.nodes(*home, &Query { q: q.into(), ..Query::default() }).unwrap().total, 0, "{q}");
            }
        }
    }

    #[test]
    fn tenants_never_see_each_others_rows() {
        each(check_tenants_never_see_each_others_rows);
    }

    fn check_tenants_never_see_each_others_rows(world: World, views: &dyn Lists) {
        assert!(world.state.tenants.len() > 2);
        for home in world.state.tenants.keys() {
            let own = home.to_string();
            let one = |q: &Query| views.tenants(Some(*home), q).unwrap();
            assert_eq!(all(9, &Query::default(), one).iter().map(|t| &t.id).collect::<Vec<_>>(), [&own]);
            assert!(all(9, &Query::default(), |q| views.cvlans(*home, q).unwrap()).iter().all(|c| c.tenant_id == own));
            assert!(all(9, &Query::default(), |q| views.nodes(*home, q).unwrap()).iter().all(|n| n.tenant_id == own));
            assert!(all(9, &Query::default(), |q| views.tokens(*home, q).unwrap()).iter().all(|t| t.tenant_id == own));
            assert!(all(9, &Query::default(), |q| views.users(*home, q).unwrap()).iter().all(|u| u.tenant_id == own));
            // Not by naming another's CVLAN or node either.
            for other in world.state.tenants.values().filter(|t| t.record.id != *home) {
                for cvlan in other.cvlans.keys() {
                    let query = Query { cvlan: Some(*cvlan), ..Query::default() };
                    assert_eq!(views.nodes(*home, &query).unwrap().total, 0);
                    assert_eq!(views.tokens(*home, &query).unwrap().total, 0);
                }
                for node in other.nodes.keys() {
                    assert_eq!(
                        views.nodes(*home, &Query { q: node.to_string(), ..Query::default() }).unwrap().total,
                        0
                    );
                }
            }
        }
    }

    #[test]
    fn bad_queries_are_the_callers_fault() {
        each(check_bad_queries_are_the_callers_fault);
    }

    fn check_bad_queries_are_the_callers_fault(world: World, views: &dyn Lists) {
        let home = *world.state.tenants.keys().next().unwrap();
        let cursor = |text: &str| Query { cursor: text.into(), ..Query::default() };
        let encoded = |text: &str| cursor(&BASE64URL.encode(text));
        let nil = Uuid::nil();
        for (query, code) in [
            (cursor("***"), "cursor_invalid"),
            (cursor("AAAA"), "cursor_invalid"),
            (encoded("name"), "cursor_invalid"),
            (encoded(&format!("name\n{nil}")), "cursor_invalid"),
            (encoded(&format!("name\n{nil}\n")), "cursor_invalid"),
            (encoded(&format!("name\n{nil}\nxa")), "cursor_invalid"),
            (encoded(&format!("name\n{nil}\ni9x")), "cursor_invalid"),
            (encoded("name\nnot-an-id\nta"), "cursor_invalid"),
            (encoded(&format!("-name\n{nil}\nta")), "cursor_invalid"),
            (Query { sort: "password_hash".into(), ..Query::default() }, "sort_invalid"),
            (Query { sort: "name; DROP TABLE nodes".into(), ..Query::default() }, "sort_invalid"),
            (Query { status: "sleeping".into(), ..Query::default() }, "filter_invalid"),
            (Query { q: "x".repeat(SEARCH_MAX + 1), ..Query::default() }, "search_too_long"),
        ] {
            let error = views.nodes(home, &query).unwrap_err();
            assert!(error.is_request());
            assert_eq!(error.code(), code, "{query:?}");
        }
        let by_cvlan = Query { cvlan: Some(CvlanId::default()), ..Query::default() };
        assert_eq!(views.users(home, &by_cvlan).unwrap_err().code(), "filter_invalid");
        assert_eq!(views.nodes(home, &Query { limit: usize::MAX, ..Query::default() }).unwrap().next_cursor, "");
    }
}
