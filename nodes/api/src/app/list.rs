//! What every list takes and gives: `limit`, `cursor`, `sort`, `q` and the noun's own filters.

use super::{App, Output, now_ms};
use crate::problem::Problem;
use cvlan_core::id::Checkpoint;
use cvlan_core::state::TenantState;
use cvlan_projections::{LIMIT_DEFAULT, LIMIT_MAX, Page, Query, Views};

/// A request's query parameters, in their order.
#[derive(Clone, Debug, Default)]
pub struct Params(pub Vec<(String, String)>);

impl Params {
    /// The value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// A number; absent = `default`.
    pub fn number(&self, name: &str, default: u64) -> Result<u64, Problem> {
        let Some(text) = self.get(name) else { return Ok(default) };
        text.parse().map_err(|_| Problem::invalid("query_invalid", format!("{name} = {text:?} is no number")))
    }

    /// At most [`LIMIT_MAX`].
    pub fn limit(&self) -> Result<usize, Problem> {
        let limit = self.number("limit", LIMIT_DEFAULT as u64)? as usize;
        if (1..=LIMIT_MAX).contains(&limit) {
            return Ok(limit);
        }
        Err(Problem::invalid("query_invalid", format!("limit is from 1 to {LIMIT_MAX}")))
    }
}

/// A list, and how fresh it must be.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Parameters, known ones only.
    pub params: Params,
    /// The reader's own `Cvlan-Checkpoint`.
    pub at_least: Option<Checkpoint>,
}

impl Wanted {
    /// As the view takes it; `cvlan` is looked up in the tenant.
    pub fn query(&self, home: Option<&TenantState>) -> Result<Query, Problem> {
        let text = |name: &str| self.params.get(name).unwrap_or_default().to_owned();
        let cvlan = match (self.params.get("cvlan"), home) {
            (Some(name), Some(home)) => {
                Some(home.cvlan_find(name).ok_or_else(cvlan_core::cvlan::cvlan_unknown)?.record.id)
            }
            _ => None,
        };
        Ok(Query {
            cvlan,
            status: text("status"),
            q: text("q"),
            sort: text("sort"),
            limit: self.params.limit()?,
            cursor: text("cursor"),
            now_ms: now_ms(),
        })
    }
}

impl App {
    /// One page of a view, once it is where the reader wants it.
    pub async fn page<T: Send + 'static>(
        &self,
        wanted: &Wanted,
        read: impl FnOnce(&Views) -> Result<Page<T>, cvlan_projections::Error> + Send + 'static,
    ) -> Result<Output<Page<T>>, Problem> {
        // A view that has seen nothing yet answers nothing: it is being built.
        let head = self.log.head().checkpoint();
        if self.views.checkpoint().epoch != head.epoch {
            self.views.reach(head).await?;
        }
        if let Some(at_least) = wanted.at_least {
            self.views.reach(at_least).await?;
        }
        let page = self.views.read(read).await?;
        let (at, total) = (page.checkpoint, Some(page.total));
        Ok(Output { body: page, at, time_ms: self.log.head().time_ms, revision: None, total })
    }
}
