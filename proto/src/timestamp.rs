//! `google.protobuf.Timestamp` with the JSON form that proto3 gives it: RFC 3339 in UTC, `Z` at the end, 0, 3, 6 or 9
//! digits of a second. Read with any offset.

use jiff::fmt::temporal::DateTimePrinter;
use serde::de::{Deserialize, Deserializer, Unexpected, Visitor};
use serde::ser::{Error as _, Serialize, Serializer};
use std::fmt;

/// A moment: what is in the log, on the wire and in JSON.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds after them, from 0 to 999,999,999.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digits = match self.nanos {
            0 => 0,
            n if n % 1_000_000 == 0 => 3,
            n if n % 1_000 == 0 => 6,
            _ => 9,
        };
        let moment = jiff::Timestamp::new(self.seconds, self.nanos).map_err(S::Error::custom)?;
        serializer.serialize_str(&DateTimePrinter::new().precision(Some(digits)).timestamp_to_string(&moment))
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Timestamp;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time as 2026-01-31T09:15:00Z")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Timestamp, E> {
                let moment: jiff::Timestamp =
                    text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &self))?;
                // Before 1970, jiff's fraction is negative; ours counts upwards from the second before.
                let (seconds, nanos) = (moment.as_second(), moment.subsec_nanosecond());
                let before = i64::from(nanos < 0);
                Ok(Timestamp { seconds: seconds - before, nanos: nanos + before as i32 * 1_000_000_000 })
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    fn check(seconds: i64, nanos: i32, json: &str) {
        let moment = Timestamp { seconds, nanos };
        assert_eq!(serde_json::to_string(&moment).unwrap(), format!("\"{json}\""));
        assert_eq!(read(json), Some(moment), "{json}");
    }

    fn read(json: &str) -> Option<Timestamp> {
        serde_json::from_str(&format!("\"{json}\"")).ok()
    }

    #[test]
    fn json_is_utc_with_as_many_digits_as_it_takes() {
        check(0, 0, "1970-01-01T00:00:00Z");
        check(1_700_000_000, 0, "2023-11-14T22:13:20Z");
        check(1_700_000_000, 250_000_000, "2023-11-14T22:13:20.250Z");
        check(1_700_000_000, 1_000, "2023-11-14T22:13:20.000001Z");
        check(1_700_000_000, 1, "2023-11-14T22:13:20.000000001Z");
        check(-1, 500_000_000, "1969-12-31T23:59:59.500Z");
        check(-62_135_596_800, 0, "0001-01-01T00:00:00Z");
        assert!(serde_json::to_string(&Timestamp { seconds: i64::MAX, nanos: 0 }).is_err());
    }

    #[test]
    fn any_offset_is_read() {
        let moment = Some(Timestamp { seconds: 1_700_000_000, nanos: 0 });
        for json in ["2023-11-14T22:13:20+00:00", "2023-11-14T23:13:20+01:00", "2023-11-14T17:13:20.000-05:00"] {
            assert_eq!(read(json), moment, "{json}");
        }
        for json in ["", "2023-11-14", "2023-11-14T22:13:20", "22:13:20Z", "yesterday", "1700000000"] {
            assert_eq!(read(json), None, "{json}");
        }
    }

    #[test]
    fn bytes_are_those_of_the_well_known_type() {
        let (ours, theirs) = (Timestamp { seconds: -7, nanos: 9 }, prost_types::Timestamp { seconds: -7, nanos: 9 });
        assert_eq!(ours.encode_to_vec(), theirs.encode_to_vec());
    }
}
