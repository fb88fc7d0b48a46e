// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Deadlines, and a descriptor that becomes readable at the first of them. Without deadlines
//! nothing ticks.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// Deadlines of things named by `T`, at most one each: the caller gives back what it set.
#[derive(Debug)]
pub struct Timer<T> {
    fd: OwnedFd,
    deadlines: BTreeSet<(Instant, T)>,
    /// When the descriptor will become readable. It may be earlier than the first deadline, if that
    /// was taken back; this costs a wake-up, and is cheaper than a system call for each one taken
    /// back.
    armed: Option<Instant>,
}

impl<T: Copy + Ord> Timer<T> {
    /// A timer without deadlines.
    pub fn new() -> Result<Self, Errno> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self {
            fd: timerfd_create(TimerfdClockId::Monotonic, flags)?,
            deadlines: BTreeSet::new(),
            armed: None,
        })
    }

    /// Sets a deadline.
    pub fn set(&mut self, at: Instant, what: T) {
        self.deadlines.insert((at, what));
        self.arm();
    }

    /// Takes a deadline back.
    pub fn unset(&mut self, at: Instant, what: T) {
        self.deadlines.remove(&(at, what));
    }

    /// Takes all deadlines back.
    pub fn clear(&mut self) {
        self.deadlines.clear();
    }

    /// The descriptor was readable: take out what has [`expired`](Self::expired), then
    /// [`arm`](Self::arm).
    pub fn acknowledge(&mut self) {
        self.armed = None;
        let mut expirations = [0; 8];
        // Nothing to read means that it was read before.
        let _ = rustix::io::read(&self.fd, &mut expirations);
    }

    /// Takes out a deadline that has passed.
    pub fn expired(&mut self, now: Instant) -> Option<T> {
        let &(at, what) = self.deadlines.first()?;
        if at > now {
            return None;
        }
        self.deadlines.pop_first();
        Some(what)
    }

    /// Makes the descriptor readable at the first deadline, if it would be later, or never.
    pub fn arm(&mut self) {
        let Some(&(first, _)) = self.deadlines.first() else {
            return;
        };
        if self.armed.is_some_and(|armed| armed <= first) {
            return;
        }
        // A timer set to zero is off.
        let wait = first
            .saturating_duration_since(Instant::now())
            .max(Duration::from_nanos(1));
        let value = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(wait).unwrap_or(Timespec {
                tv_sec: i64::MAX,
                tv_nsec: 0,
            }),
        };
        // It fails only for times that are no times.
        let set = timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &value);
        self.armed = set.is_ok().then_some(first);
    }
}

impl<T> AsFd for Timer<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn is_readable(timer: &Timer<u32>, within: Duration) -> bool {
        let within = Timespec::try_from(within).unwrap();
        let mut fds = [PollFd::new(timer, PollFlags::IN)];
        poll(&mut fds, Some(&within)).unwrap() == 1
    }

    #[test]
    fn deadlines_pass_in_their_order() {
        let mut timer = Timer::new().unwrap();
        let now = Instant::now();
        timer.set(now + Duration::from_secs(2), 2);
        timer.set(now + Duration::from_secs(1), 1);
        timer.set(now + Duration::from_secs(3), 3);

        let at = now + Duration::from_secs(2);
        let passed: Vec<_> = std::iter::from_fn(|| timer.expired(at)).collect();

        assert_eq!(passed, [1, 2]);
    }

    #[test]
    fn deadline_that_was_taken_back_does_not_pass() {
        let mut timer = Timer::new().unwrap();
        let now = Instant::now();
        timer.set(now, 1);

        timer.unset(now, 1);

        assert_eq!(timer.expired(now), None);
    }

    #[test]
    fn descriptor_is_readable_at_the_first_deadline_and_then_at_the_next() {
        let mut timer = Timer::new().unwrap();
        let now = Instant::now();
        timer.set(now + Duration::from_secs(3600), 2);
        assert!(!is_readable(&timer, Duration::ZERO));

        timer.set(now, 1);
        assert!(is_readable(&timer, Duration::from_secs(10)));
        timer.acknowledge();
        assert_eq!(timer.expired(Instant::now()), Some(1));
        timer.arm();
        assert!(!is_readable(&timer, Duration::ZERO));

        timer.set(now, 3);
        assert!(is_readable(&timer, Duration::from_secs(10)));
    }

    #[test]
    fn timer_without_deadlines_never_ticks() {
        let mut timer = Timer::<u32>::new().unwrap();

        timer.arm();

        assert!(!is_readable(&timer, Duration::ZERO));
    }
}
