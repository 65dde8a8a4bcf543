//! Where the database is. What is printed of it has no password.

use crate::error::Error;
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;
use std::fmt;
use std::str::FromStr;

/// Parameters after the `?`, as libpq names them. Another one would be ignored in silence, with what it was meant to do.
const PARAMETERS: [&str; 10] =
    ["sslmode", "sslrootcert", "sslcert", "sslkey", "host", "port", "dbname", "user", "password", "application_name"];

/// `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=…`: what is left out comes from `PGHOST`, `PGUSER`, `PGPASSWORD`,
/// `PGPASSFILE` and so on, as with other programs (PostgreSQL 16, §34.1.1.2, §34.15).
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl(String);

impl PostgresUrl {
    pub(crate) fn options(&self) -> Result<PgConnectOptions, Error> {
        let options = PgConnectOptions::from_str(&self.0).map_err(|e| Error::Url(e.to_string()))?;
        Ok(options.disable_statement_logging())
    }
}

impl FromStr for PostgresUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err(Error::Url("it does not begin with postgres://".to_owned()));
        }
        let parameters = text.split_once('?').map(|(_, rest)| rest).unwrap_or_default();
        for name in parameters.split('&').filter_map(|p| p.split('=').next()).filter(|name| !name.is_empty()) {
            if !PARAMETERS.contains(&name) {
                return Err(Error::Url(format!("parameter {name:?} is none of {}", PARAMETERS.join(", "))));
            }
        }
        let new = Self(text.to_owned());
        new.options()?;
        Ok(new)
    }
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It was parsed before.
        let Ok(o) = self.options() else { return f.write_str("postgres://") };
        let (user, database) = (o.get_username(), o.get_database().unwrap_or_default());
        match o.get_socket() {
            Some(socket) => write!(f, "postgres://{user}@/{database}?host={}", socket.display()),
            None => write!(f, "postgres://{user}@{}:{}/{database}", o.get_host(), o.get_port()),
        }
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        for text in
            ["postgres://ann:s3cret@db.example:5433/net", "postgresql://ann@db.example:5433/net?password=s3cret"]
        {
            let url: PostgresUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), "postgres://ann@db.example:5433/net");
            assert_eq!(format!("{url:?}"), url.to_string());
        }
    }

    #[test]
    fn what_is_no_url_is_said_without_its_text() {
        for bad in [
            "",
            "mysql://ann:s3cret@db/net",
            "s3cret",
            "postgres://ann:s3cret@db:port/net",
            "postgres://ann:s3cret@db:99999/net",
            "postgres://ann:s3cret@db/net?sslmode=often",
            "postgres://ann:s3cret@db/net?passwd=s3cret",
        ] {
            let error = bad.parse::<PostgresUrl>().unwrap_err();
            assert_eq!(error.code(), "view_url_invalid");
            assert!(!error.to_string().contains("s3cret") && error.to_string().contains("DATABASE"), "{error}");
        }
    }
}
