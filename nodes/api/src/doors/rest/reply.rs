//! Answers of the REST door.

use super::{CHECKPOINT, TIME, TOTAL};
use crate::app::Output;
use crate::problem::Problem;
use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

/// JSON with the answer's freshness and the thing's ETag.
pub fn json<T: Serialize>(status: StatusCode, output: Output<T>) -> Result<Response, Problem> {
    let body = serde_json::to_vec(&output.body).map_err(Problem::internal)?;
    let mut response = bare(status, &output, Body::from(body))?;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// 200, with a body that is no JSON.
pub fn bytes(kind: &'static str, output: Output<Vec<u8>>) -> Result<Response, Problem> {
    let mut response = bare(StatusCode::OK, &output, Body::empty())?;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    *response.body_mut() = Body::from(output.body);
    Ok(response)
}

/// 200.
pub fn ok<T: Serialize>(output: Output<T>) -> Result<Response, Problem> {
    json(StatusCode::OK, output)
}

/// 201, with the new thing's path.
pub fn created<T: Serialize>(path: String, output: Output<T>) -> Result<Response, Problem> {
    let mut response = json(StatusCode::CREATED, output)?;
    response.headers_mut().insert(header::LOCATION, value(path)?);
    Ok(response)
}

/// 204.
pub fn none(output: Output<()>) -> Result<Response, Problem> {
    bare(StatusCode::NO_CONTENT, &output, Body::empty())
}

/// Any body with the answer's freshness.
pub fn bare<T>(status: StatusCode, output: &Output<T>, body: Body) -> Result<Response, Problem> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.reserve(8);
    headers.insert(CHECKPOINT, value(output.at.to_string())?);
    headers.insert(TIME, value(rfc3339(output.time_ms))?);
    if let Some(revision) = output.revision {
        headers.insert(header::ETAG, value(format!("\"{revision}\""))?);
    }
    if let Some(total) = output.total {
        headers.insert(TOTAL, total.into());
    }
    Ok(response)
}

fn value(text: String) -> Result<HeaderValue, Problem> {
    HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).map_err(Problem::internal)
}

/// RFC 3339, UTC, milliseconds. Days to dates after Hinnant, "chrono-Compatible Low-Level Date Algorithms".
pub fn rfc3339(ms: u64) -> String {
    let (days, rest) = (ms / 86_400_000, ms % 86_400_000);
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (h, m, s, ms) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60, rest % 1000);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_700_000_000_123, "2023-11-14T22:13:20.123Z"),
            (4_102_444_800_000, "2100-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(ms), text);
        }
    }
}
