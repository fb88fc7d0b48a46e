// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The one place where the end of a virtual machine is recorded: the first one who reports it decides.

use std::sync::{Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::{Exit, Fault};

/// How it ended, or nothing yet. Any thread may report.
#[derive(Debug)]
pub(crate) struct Ending {
    outcome: Mutex<Outcome>,
    event: EventFd,
}

#[derive(Debug)]
enum Outcome {
    None,
    Reported(Result<Exit, Fault>),
    Taken,
}

impl Ending {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            outcome: Mutex::new(Outcome::None),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// Records the end, unless there is one already, and wakes whoever waits for [`event`](Self::event).
    pub(crate) fn report(&self, ended: Result<Exit, Fault>) {
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*outcome, Outcome::None) {
            *outcome = Outcome::Reported(ended);
            // Fails only when the counter is full, and then it is readable already.
            let _ = self.event.write(1);
        }
    }

    /// Whether there is an end, taken or not.
    pub(crate) fn is_reported(&self) -> bool {
        let outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        !matches!(*outcome, Outcome::None)
    }

    /// The end, once.
    pub(crate) fn take(&self) -> Option<Result<Exit, Fault>> {
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *outcome, Outcome::Taken) {
            Outcome::Reported(ended) => Some(ended),
            before => {
                *outcome = before;
                None
            }
        }
    }

    /// Becomes readable with the end, and stays so.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_report_counts() {
        let ending = Ending::new().unwrap();

        ending.report(Ok(Exit::Reset));
        ending.report(Ok(Exit::TripleFault));

        assert!(matches!(ending.take(), Some(Ok(Exit::Reset))));
        assert_eq!(ending.event().read().unwrap(), 1);
    }

    #[test]
    fn nothing_is_taken_before_a_report() {
        let ending = Ending::new().unwrap();

        let before = ending.take();
        ending.report(Ok(Exit::Shutdown));

        assert!(before.is_none());
        assert!(ending.take().is_some());
    }

    #[test]
    fn report_after_the_end_was_taken_is_ignored() {
        let ending = Ending::new().unwrap();
        ending.report(Ok(Exit::Shutdown));
        ending.take();

        ending.report(Ok(Exit::Reset));

        assert!(ending.take().is_none());
    }
}
