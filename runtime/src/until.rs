// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Waiting for what nobody tells of.

use std::thread;
use std::time::{Duration, Instant};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Does `act` until what comes of it will do, for as long as `patience` lasts; gives the last outcome.
pub fn until<T>(patience: Duration, mut act: impl FnMut() -> T, will_do: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + patience;
    loop {
        // What the last look shows was there in time, however long it was on its way.
        let is_last = Instant::now() >= deadline;
        let outcome = act();
        if is_last || will_do(&outcome) {
            return outcome;
        }
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_outcome_that_will_do_ends_it() {
        let mut tries = 0;
        let mut act = || {
            tries += 1;
            tries
        };

        let outcome = until(Duration::from_secs(60), &mut act, |tries| *tries == 3);

        assert_eq!((outcome, tries), (3, 3));
    }

    #[test]
    fn last_outcome_is_given_where_none_will_do() {
        let began = Instant::now();

        let outcome = until(Duration::from_millis(100), || "busy", |_| false);

        assert_eq!(outcome, "busy");
        assert!(began.elapsed() >= Duration::from_millis(100));
    }

    #[test]
    fn without_patience_there_is_one_look() {
        let mut looks = 0;

        until(Duration::ZERO, || looks += 1, |()| false);

        assert_eq!(looks, 1);
    }
}
