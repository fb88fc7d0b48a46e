// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All vCPUs of a machine, each on a thread of its own: held out of the guest and let go again, looked at while they are
//! held, and stopped.
//!
//! A vCPU runs while nobody holds it. To hold it its [`Holder`] is marked and its thread kicked; the thread leaves the
//! guest, gives the vCPU free and waits. Nothing here waits for a thread without a deadline: one that is busy
//! with a device may be waiting for the very thread that holds it.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::Vcpu;
use super::kick::{Kicks, Target};
use super::run::{Left, run};
use crate::bus::Buses;
use crate::ending::Ending;
use crate::filters::Filter;
use crate::gdb::Stops;
use crate::{Exit, Fault};

/// What all vCPU threads of a machine share.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) buses: Arc<Buses>,
    pub(crate) ending: Arc<Ending>,
    pub(crate) filter: Option<Arc<Filter>>,
    /// Where the debugger, if there is one, learns of breakpoints and steps.
    pub(crate) stops: Option<Arc<Stops>>,
}

/// Who keeps a vCPU out of the guest: a bit each.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(crate) enum Holder {
    /// Whoever controls the machine.
    Control = 1 << 0,
    /// The debugger.
    Debugger = 1 << 1,
    /// The machine's end, for good.
    Stop = 1 << 2,
}

/// Called when a vCPU that is held has left the guest.
type Notice = Box<dyn Fn() + Send + Sync>;

/// The vCPUs of a machine in the order of their numbers.
pub(crate) struct VcpuGroup {
    seats: Vec<Seat>,
    kicks: Kicks,
    /// Changes of `holders` and of where a vCPU is are made under this lock.
    places: Mutex<Vec<Place>>,
    changed: Condvar,
    notice: OnceLock<Notice>,
}

struct Seat {
    /// Locked by its thread for as long as it is in the guest.
    vcpu: Mutex<Vcpu>,
    /// The [`Holder`]s.
    holders: AtomicU8,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the guest, or on the way in or out.
    Guest,
    /// Waiting.
    Outside,
    /// Without a thread: not started, or ended.
    Gone,
}

impl VcpuGroup {
    pub(crate) fn new(vcpus: Vec<Vcpu>, kicks: Kicks) -> Self {
        let seats: Vec<_> = vcpus
            .into_iter()
            .map(|vcpu| Seat {
                vcpu: Mutex::new(vcpu),
                holders: AtomicU8::new(0),
                thread: Mutex::new(None),
            })
            .collect();
        Self {
            places: Mutex::new(vec![Place::Gone; seats.len()]),
            seats,
            kicks,
            changed: Condvar::new(),
            notice: OnceLock::new(),
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.seats.len()
    }

    /// Has `notice` called, on the vCPU's thread, each time that a vCPU has left the guest because it is held. The first
    /// call counts.
    pub(crate) fn notify(&self, notice: Notice) {
        let _ = self.notice.set(notice);
    }

    /// Starts the threads. Each reports the machine's end if it learns of it. No other thread may hold a vCPU meanwhile.
    pub(crate) fn start(self: &Arc<Self>, context: &Context) -> io::Result<()> {
        for (index, seat) in self.seats.iter().enumerate() {
            let (group, context) = (Arc::clone(self), context.clone());
            self.put(index, Place::Outside);
            let thread = Builder::new()
                .name(format!("vcpu {index}"))
                .spawn(move || group.live(index, &context))
                .inspect_err(|_| self.put(index, Place::Gone))?;
            *lock(&seat.thread) = Some(thread);
        }
        Ok(())
    }

    /// The life of a vCPU's thread.
    fn live(&self, index: usize, context: &Context) {
        // Even a thread that panics is gone.
        let gone = Gone { group: self, index };
        let ended = self.run(index, context).transpose();
        if let Some(ended) = ended {
            context.ending.report(ended);
        }
        drop(gone);
    }

    /// Runs the vCPU in the guest and out of it until the machine's end, which this thread has met or not.
    fn run(&self, index: usize, context: &Context) -> Result<Option<Exit>, Fault> {
        // There are at most 255.
        let number = u8::try_from(index).unwrap_or(u8::MAX);
        if let Some(filter) = &context.filter {
            filter.apply().map_err(|source| Fault::Confine {
                index: number,
                source,
            })?;
        }
        let seat = &self.seats[index];
        while let Some(was_held) = self.enter(index) {
            let left = {
                let mut vcpu = lock(&seat.vcpu);
                if was_held {
                    vcpu.forgive_lost_time();
                }
                let mut target = Target::new(&mut vcpu.fd);
                run(target.fd(), &context.buses, &seat.holders)
            };
            let left = left.map_err(|source| Fault::Vcpu {
                index: number,
                source,
            })?;
            match left {
                Left::Held => {}
                Left::Ended(exit) => return Ok(Some(exit)),
                Left::Debug(debug) => {
                    let hold = || self.hold([index], Holder::Debugger);
                    let stops = context.stops.as_ref();
                    if !stops.is_some_and(|stops| stops.push(index, debug, hold)) {
                        // What a debugger that has gone could not take back. KVM refuses wrong arguments only.
                        let _ = lock(&seat.vcpu).end_debugging();
                    }
                }
            }
            self.leave(index);
        }
        Ok(None)
    }

    /// Waits until nobody holds the vCPU, and marks it as in the guest. Whether somebody held it; none at the machine's
    /// end.
    fn enter(&self, index: usize) -> Option<bool> {
        let mut was_held = false;
        let mut places = lock(&self.places);
        loop {
            match self.seats[index].holders.load(Ordering::Acquire) {
                0 => {
                    places[index] = Place::Guest;
                    return Some(was_held);
                }
                holders if holders & Holder::Stop as u8 != 0 => return None,
                _ => {
                    was_held = true;
                    places = wait(&self.changed, places);
                }
            }
        }
    }

    fn leave(&self, index: usize) {
        self.put(index, Place::Outside);
        if let Some(notice) = self.notice.get() {
            notice();
        }
    }

    fn put(&self, index: usize, place: Place) {
        lock(&self.places)[index] = place;
        self.changed.notify_all();
    }

    /// Calls the vCPUs `which` out of the guest and keeps them out for `holder`. Does not wait for them.
    pub(crate) fn hold(&self, which: impl IntoIterator<Item = usize>, holder: Holder) {
        let which = which.into_iter().map(|index| &self.seats[index]);
        let places = lock(&self.places);
        let held: Vec<_> = which
            .inspect(|seat| _ = seat.holders.fetch_or(holder as u8, Ordering::AcqRel))
            .collect();
        // Who waits has to see a new reason to end, too.
        self.changed.notify_all();
        drop(places);
        for seat in held {
            if let Some(thread) = &*lock(&seat.thread) {
                self.kicks.kick(thread);
            }
        }
    }

    /// Calls all vCPUs out of the guest and keeps them out for `holder`. Does not wait for them.
    pub(crate) fn hold_all(&self, holder: Holder) {
        self.hold(0..self.len(), holder);
    }

    /// Lets the vCPUs `which` go, as far as `holder` is concerned.
    pub(crate) fn release(&self, which: impl IntoIterator<Item = usize>, holder: Holder) {
        let places = lock(&self.places);
        for index in which {
            let holders = &self.seats[index].holders;
            holders.fetch_and(!(holder as u8), Ordering::AcqRel);
        }
        drop(places);
        self.changed.notify_all();
    }

    /// Lets all vCPUs go, as far as `holder` is concerned.
    pub(crate) fn release_all(&self, holder: Holder) {
        self.release(0..self.len(), holder);
    }

    /// The first vCPU that is still in the guest.
    pub(crate) fn first_inside(&self) -> Option<usize> {
        let places = lock(&self.places);
        places.iter().position(|place| *place == Place::Guest)
    }

    /// Waits until all vCPUs are out of the guest; past `deadline` the first that is not is returned.
    pub(crate) fn wait_until_outside(&self, deadline: Instant) -> Result<(), usize> {
        self.wait_until(deadline, |_, place| place != Place::Guest)
    }

    /// Waits until this vCPU is out of the guest; past `deadline` its number is returned.
    pub(crate) fn wait_for_vcpu(&self, index: usize, deadline: Instant) -> Result<(), usize> {
        self.wait_until(deadline, |at, place| at != index || place != Place::Guest)
    }

    fn wait_until(
        &self,
        deadline: Instant,
        is_met: impl Fn(usize, Place) -> bool,
    ) -> Result<(), usize> {
        let mut places = lock(&self.places);
        let missing = |places: &[Place]| {
            let mut places = places.iter().enumerate();
            places.position(|(index, place)| !is_met(index, *place))
        };
        while let Some(index) = missing(&places) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(index);
            }
            places = wait_for(&self.changed, places, left);
        }
        Ok(())
    }

    /// The vCPU, unless it is in the guest.
    pub(crate) fn get(&self, index: usize) -> Option<MutexGuard<'_, Vcpu>> {
        match self.seats[index].vcpu.try_lock() {
            Ok(vcpu) => Some(vcpu),
            // Its registers are KVM's, and whole.
            Err(std::sync::TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        }
    }

    /// Has all threads end, and waits for them for at most `patience`. A thread that does not end is left alone; it
    /// keeps what it uses.
    pub(crate) fn stop(&self, patience: Duration) {
        self.hold_all(Holder::Stop);
        let threads: Vec<_> = self
            .seats
            .iter()
            .filter_map(|seat| lock(&seat.thread).take())
            .collect();
        if threads.is_empty() {
            return;
        }
        let deadline = Instant::now() + patience;
        let all_end = self.wait_until(deadline, |_, place| place == Place::Gone);
        for thread in threads {
            if all_end.is_ok() || thread.is_finished() {
                // A panic was printed when it happened, and there is nothing to be had from the thread.
                let _ = thread.join();
            }
        }
    }
}

/// Marks a thread as gone when it ends.
struct Gone<'g> {
    group: &'g VcpuGroup,
    index: usize,
}

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.group.put(self.index, Place::Gone);
    }
}

// Whoever panicked left nothing half done under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait<'m, T>(condition: &Condvar, guard: MutexGuard<'m, T>) -> MutexGuard<'m, T> {
    condition
        .wait(guard)
        .unwrap_or_else(PoisonError::into_inner)
}

fn wait_for<'m, T>(
    condition: &Condvar,
    guard: MutexGuard<'m, T>,
    left: Duration,
) -> MutexGuard<'m, T> {
    let waited = condition.wait_timeout(guard, left);
    waited.unwrap_or_else(PoisonError::into_inner).0
}
