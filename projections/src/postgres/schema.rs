//! What is made once: the tables, who may read them, and of them only their tenant's rows.
//!
//! - `cvlan_reader` sees the rows of one tenant: the one that a login is bound to in `cvlan.access`, else the one that it
//!   names itself (`SET cvlan.tenant = '…'`: for programs that serve many and are trusted with it), else none.
//! - `cvlan_bi` sees all rows.
//!
//! Both may only read, and nobody can log in as them: logins of the operator's are made members. What a binding says is the
//! operator's: a new version of the tables leaves it alone.

use super::session::{Shell, WHOLE};
use crate::error::Error;
use crate::meta;
use crate::table::{Dialect, Table};
use sqlx::{AssertSqlSafe, PgConnection};

pub(super) const ROLES: [&str; 2] = ["cvlan_reader", "cvlan_bi"];
pub(super) const ROLE: &str = "SELECT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = $1)";
/// Our tables of whatever version; what others have built on them keeps them, and PostgreSQL says what that is.
pub(super) const OLD: &str = "
SELECT format('DROP TABLE %I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'cvlan' AND tablename <> 'access'";
const BASE: [&str; 5] = [
    "CREATE SCHEMA IF NOT EXISTS cvlan",
    "CREATE TABLE IF NOT EXISTS cvlan.access (login name NOT NULL PRIMARY KEY, tenant uuid NOT NULL)",
    // As its owner, so that who reads need not see the bindings; by full names, so that nobody can put others before them.
    "CREATE OR REPLACE FUNCTION cvlan.tenant() RETURNS uuid LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog
     AS $$ SELECT COALESCE((SELECT a.tenant FROM cvlan.access a WHERE a.login = session_user),
                           NULLIF(current_setting('cvlan.tenant', true), '')::uuid) $$",
    "GRANT USAGE ON SCHEMA cvlan TO cvlan_reader, cvlan_bi",
    "GRANT EXECUTE ON FUNCTION cvlan.tenant() TO cvlan_reader, cvlan_bi",
];

/// All that makes the tables, after [`BASE`].
pub(super) fn statements() -> Vec<String> {
    let mut all = meta::create(Dialect::Postgres);
    all.push("GRANT SELECT ON meta TO cvlan_reader, cvlan_bi".to_owned());
    all.extend(meta::TABLES.iter().flat_map(|table| guard(table)));
    all
}

/// Who may see which rows of a table. The owner writes, and is under the rules as well.
fn guard(table: &Table) -> [String; 6] {
    let (name, home) = (table.name, table.home);
    [
        format!("ALTER TABLE {name} ENABLE ROW LEVEL SECURITY"),
        format!("ALTER TABLE {name} FORCE ROW LEVEL SECURITY"),
        format!("CREATE POLICY writer ON {name} TO CURRENT_USER USING (true) WITH CHECK (true)"),
        // A sub-select is computed once a query, not once a row.
        format!(
            "CREATE POLICY one_tenant ON {name} FOR SELECT TO cvlan_reader USING ({home} = (SELECT cvlan.tenant()))"
        ),
        format!("CREATE POLICY all_tenants ON {name} FOR SELECT TO cvlan_bi USING (true)"),
        format!("GRANT SELECT ON {name} TO cvlan_reader, cvlan_bi"),
    ]
}

/// The tables' version.
pub(super) fn version() -> i64 {
    meta::version(&[BASE.map(str::to_owned).to_vec(), statements()].concat())
}

/// Makes everything anew, empty, at checkpoint 0 of no epoch; in the caller's transaction.
pub(super) fn create(conn: &mut PgConnection, shell: &Shell) -> Result<(), Error> {
    for role in ROLES {
        let there: bool = shell.run(WHOLE, sqlx::query_scalar(ROLE).bind(role).fetch_one(&mut *conn))?;
        if !there {
            let make = format!("CREATE ROLE {role} NOLOGIN");
            // Roles are the server's: a writer of another database may make them at the same time.
            let once =
                format!("DO $$ BEGIN {make}; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$");
            shell.run(WHOLE, sqlx::raw_sql(AssertSqlSafe(once)).execute(&mut *conn)).map_err(|e| {
                Error::Postgres(format!("there is no role {role}; as one that may make roles, run: {make}; {e}"))
            })?;
        }
    }
    for sql in BASE {
        shell.run(WHOLE, sqlx::raw_sql(sql).execute(&mut *conn))?;
    }
    let old: Vec<String> = shell.run(WHOLE, sqlx::query_scalar(OLD).fetch_all(&mut *conn))?;
    for sql in old.into_iter().chain(statements()) {
        shell.run(WHOLE, sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *conn))?;
    }
    shell.run(WHOLE, sqlx::query(meta::CREATE).bind(version()).bind([0u8; 16]).execute(&mut *conn)).map(drop)
}
