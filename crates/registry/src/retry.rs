// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When a request is made again, and when no more.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::error::RegistryError;
use crate::options::Retry;

/// Longest wait that is read from a header: more is as good as never.
const RETRY_AFTER_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// The tries of one request.
pub(crate) struct Attempts {
    policy: Retry,
    tries: u32,
    first_failure: Option<Instant>,
}

impl Attempts {
    pub(crate) fn new(policy: Retry) -> Self {
        Self {
            policy,
            tries: 0,
            first_failure: None,
        }
    }

    /// Something was gained: tries count anew.
    pub(crate) fn progressed(&mut self) {
        *self = Self::new(self.policy);
    }

    /// How long to wait after a failure until the next try; the failure to report where there is none.
    pub(crate) fn next(
        &mut self,
        error: RegistryError,
    ) -> Result<(Duration, RegistryError), RegistryError> {
        if !error.is_transient() {
            return Err(error);
        }
        self.tries = self.tries.saturating_add(1);
        let spent = self
            .first_failure
            .get_or_insert_with(Instant::now)
            .elapsed();
        let doubled = 1_u32
            .checked_shl(self.tries - 1)
            .and_then(|factor| self.policy.first.checked_mul(factor))
            .unwrap_or(Duration::MAX);
        // Many clients that failed together should not come back together.
        let own = doubled
            .min(self.policy.longest)
            .mul_f64(0.5 + chance() / 2.0);
        let wait = own.max(error.retry_after().unwrap_or_default());
        if self.tries < self.policy.tries && spent.saturating_add(wait) <= self.policy.total {
            return Ok((wait, error));
        }
        if self.tries == 1 {
            return Err(error);
        }
        Err(RegistryError::GaveUp {
            tries: self.tries,
            spent,
            source: Box::new(error),
        })
    }
}

/// From 0 to 1, another each time.
fn chance() -> f64 {
    f64::from(RandomState::new().hash_one(0) as u32) / f64::from(u32::MAX)
}

/// Reads a `Retry-After` header (RFC 9110, 10.2.3): seconds or a date.
pub(crate) fn retry_after(header: &str, now: SystemTime) -> Option<Duration> {
    let header = header.trim();
    let wait = match header.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(header)
            .ok()?
            .duration_since(now)
            .unwrap_or_default(),
    };
    Some(wait.min(RETRY_AFTER_LIMIT))
}

/// Ends the waits of all threads that pull one image, once one has failed.
#[derive(Default)]
pub(crate) struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    pub(crate) fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    pub(crate) fn check(&self) -> Result<(), RegistryError> {
        self.wait(Duration::ZERO)
    }

    /// Waits, unless stopped.
    pub(crate) fn wait(&self, wait: Duration) -> Result<(), RegistryError> {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let (stopped, _) = self
            .changed
            .wait_timeout_while(stopped, wait, |stopped| !*stopped)
            .unwrap_or_else(PoisonError::into_inner);
        if *stopped {
            Err(RegistryError::Stopped)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const POLICY: Retry = Retry {
        tries: 4,
        first: Duration::from_secs(1),
        longest: Duration::from_secs(3),
        total: Duration::from_secs(60),
    };

    fn unavailable(retry_after: Option<u64>) -> RegistryError {
        RegistryError::Unavailable {
            host: "a.io".into(),
            what: "x".into(),
            status: 503,
            said: String::new(),
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    fn waits(retry_after: Option<u64>) -> (Vec<u64>, RegistryError) {
        let mut attempts = Attempts::new(POLICY);
        let mut waits = Vec::new();
        loop {
            match attempts.next(unavailable(retry_after)) {
                Ok((wait, _)) => waits.push(wait.as_millis().try_into().unwrap()),
                Err(error) => return (waits, error),
            }
        }
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let (waits, error) = waits(None);

        assert_eq!(waits.len(), 3);
        assert!((500..=1000).contains(&waits[0]), "{waits:?}");
        assert!((1000..=2000).contains(&waits[1]), "{waits:?}");
        assert!((1500..=3000).contains(&waits[2]), "{waits:?}");
        assert!(
            error.to_string().starts_with("gave up after 4 tries"),
            "{error}"
        );
    }

    #[test]
    fn what_the_registry_asks_for_is_waited() {
        assert_eq!(waits(Some(20)).0, [20_000, 20_000, 20_000]);
    }

    #[test]
    fn wait_beyond_the_total_is_not_begun() {
        let (waits, error) = waits(Some(61));

        assert!(waits.is_empty());
        assert!(
            error.to_string().ends_with("it asks to wait 61.0 s"),
            "{error}"
        );
    }

    #[test]
    fn what_cannot_pass_is_not_tried_again() {
        let error = Attempts::new(POLICY)
            .next(RegistryError::Stopped)
            .unwrap_err();

        assert!(matches!(error, RegistryError::Stopped));
    }

    #[test]
    fn progress_counts_tries_anew() {
        let mut attempts = Attempts::new(Retry { tries: 2, ..POLICY });
        attempts.next(unavailable(None)).unwrap();

        attempts.progressed();

        assert!(attempts.next(unavailable(None)).is_ok());
    }

    #[rstest]
    #[case::seconds("120", Some(120))]
    #[case::date("Thu, 01 Jan 1970 00:02:00 GMT", Some(60))]
    #[case::past("Thu, 01 Jan 1970 00:00:00 GMT", Some(0))]
    #[case::never("99999999999", Some(24 * 60 * 60))]
    #[case::negative("-1", None)]
    #[case::text("soon", None)]
    fn retry_after_is_read(#[case] header: &str, #[case] expected: Option<u64>) {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(60);

        assert_eq!(retry_after(header, now), expected.map(Duration::from_secs));
    }

    #[test]
    fn stop_ends_a_wait() {
        let stop = Stop::default();
        let started = Instant::now();

        let result = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| stop.wait(Duration::from_secs(60)));
            stop.stop();
            waiting.join().unwrap()
        });

        assert!(matches!(result, Err(RegistryError::Stopped)));
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    proptest! {
        #[test]
        fn any_header_and_policy_are_borne(header in ".{0,20}", first in any::<u32>(), tries in 0_u32..50) {
            let _ = retry_after(&header, SystemTime::now());
            let mut attempts = Attempts::new(Retry {
                tries, first: Duration::from_millis(first.into()), longest: Duration::MAX, total: Duration::MAX,
            });
            while attempts.next(unavailable(None)).is_ok() {}
            prop_assert!(attempts.tries <= tries.max(1));
        }
    }
}
