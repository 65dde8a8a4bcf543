//! One request, checked as its route wants it.

use crate::app::list::{Params, Wanted};
use crate::app::{App, Caller};
use crate::doors::body::json_read;
use crate::doors::limit::Limit;
use crate::problem::Problem;
use axum::extract::RawPathParams;
use bytes::Bytes;
use cvlan_core::State;
use cvlan_core::access::tenant_unknown;
use cvlan_core::id::Checkpoint;
use cvlan_core::state::TenantState;
use cvlan_raft::Head;
use serde::de::DeserializeOwned;
use std::net::IpAddr;
use std::sync::Arc;

/// What a route's handler gets.
pub struct Call {
    /// The controller.
    pub app: Arc<App>,
    /// The state that the door's checks were made against.
    pub head: Arc<Head<State>>,
    pub(super) caller: Option<Caller>,
    pub(super) home: Option<Arc<TenantState>>,
    pub(super) params: RawPathParams,
    /// Query parameters, known ones only.
    pub query: Params,
    pub(super) body: Bytes,
    /// Where from.
    pub source: IpAddr,
    /// The reader's own checkpoint.
    pub at_least: Option<Checkpoint>,
    /// `Accept`.
    pub accept: String,
}

impl Call {
    /// Who asks.
    pub fn caller(&self) -> Result<&Caller, Problem> {
        self.caller.as_ref().ok_or_else(|| Problem::internal("a public route asked who calls"))
    }

    /// The tenant in the path.
    pub fn home(&self) -> Result<&TenantState, Problem> {
        Ok(self.home.as_deref().ok_or_else(tenant_unknown)?)
    }

    /// A placeholder of the path.
    pub fn param(&self, name: &str) -> &str {
        param(&self.params, name)
    }

    /// The body.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        json_read(&self.body)
    }

    /// What a list is asked for.
    pub fn wanted(&self) -> Wanted {
        Wanted { params: self.query.clone(), at_least: self.at_least }
    }

    /// 429 where this address asks too often.
    pub fn limited(&self, limit: &Limit) -> Result<(), Problem> {
        limit.check(self.source, &self.app.metrics)
    }
}

/// A placeholder's value; empty where the path has no such one.
pub(super) fn param<'a>(params: &'a RawPathParams, name: &str) -> &'a str {
    params.iter().find(|(n, _)| *n == name).map(|(_, v)| v).unwrap_or_default()
}
