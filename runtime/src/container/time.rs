// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A point in time, as records and logs write it: RFC 3339, in UTC.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use humantime::{TimestampError, format_rfc3339_nanos, parse_rfc3339};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A point in time, to the nanosecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(SystemTime);

impl Time {
    /// By the host's clock.
    pub fn now() -> Self {
        Self(SystemTime::now())
    }

    /// A point by the host's clock.
    pub fn at(time: SystemTime) -> Self {
        Self(time)
    }

    /// How long ago it was; nothing if it is yet to come.
    pub fn age(self) -> Duration {
        self.0.elapsed().unwrap_or_default()
    }

    /// How long ago it was, in one unit: `3 min`, `2 d`.
    pub fn ago(self) -> String {
        let seconds = self.age().as_secs();
        match seconds {
            0..60 => format!("{seconds} s"),
            60..3_600 => format!("{} min", seconds / 60),
            3_600..172_800 => format!("{} h", seconds / 3_600),
            _ => format!("{} d", seconds / 86_400),
        }
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        format_rfc3339_nanos(self.0).fmt(f)
    }
}

impl FromStr for Time {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        parse_rfc3339(text).map(Self)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn text_is_exact() {
        let text = "2026-01-02T03:04:05.000000006Z";

        assert_eq!(text.parse::<Time>().unwrap().to_string(), text);
    }

    #[rstest]
    #[case(5, "5 s")]
    #[case(119, "1 min")]
    #[case(7_300, "2 h")]
    #[case(86_400, "24 h")]
    #[case(260_000, "3 d")]
    fn age_is_told_in_one_unit(#[case] seconds: u64, #[case] expected: &str) {
        let time = Time(SystemTime::now() - Duration::from_secs(seconds));

        assert_eq!(time.ago(), expected);
    }

    #[test]
    fn what_is_yet_to_come_has_no_age() {
        let time = Time(SystemTime::now() + Duration::from_secs(60));

        assert_eq!(time.age(), Duration::ZERO);
    }
}
