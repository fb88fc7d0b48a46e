// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine as gdb's protocol has it: a program whose threads are the vCPUs.

use std::io::Write;
use std::num::NonZeroUsize;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use coracle_memory::{AccessError, GuestAddress, GuestMemory};
use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints as BreakpointsExt, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint,
    HwWatchpointOps, SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_BP, kvm_debug_exit_arch, kvm_guest_debug,
};
use thiserror::Error;

use super::Stops;
use super::breakpoints::{Access, Breakpoints, Cause};
use super::connection::{Debugger, Ready};
use super::registers::{Guest64, GuestRegisters};
use crate::KvmError;
use crate::paging;
use crate::vcpu::{Holder, Vcpu, VcpuGroup};

/// How long the vCPUs may take to leave the guest.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a session cannot go on.
#[derive(Debug, Error)]
pub(super) enum GuestError {
    #[error("vCPU {0} does not leave the guest")]
    Inside(usize),
    #[error("vCPU {0} does not exist or runs")]
    NoVcpu(usize),
    #[error("a vCPU cannot be debugged")]
    Kvm(#[from] KvmError),
}

/// What a vCPU does when the guest goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// What those do that nothing is said of.
    Default,
    Continue,
    Step,
}

/// The machine under a debugger.
pub(super) struct Guest {
    vcpus: Arc<VcpuGroup>,
    memory: GuestMemory,
    stops: Arc<Stops>,
    breakpoints: Breakpoints,
    actions: Vec<Action>,
    /// Whether vCPUs stay where they are unless something is said of them.
    others_stay: bool,
    /// The vCPU that stopped last, in whose address space breakpoints are.
    current: usize,
    /// Whether KVM can keep interrupts from a vCPU that makes a step.
    block_interrupts: bool,
}

impl Guest {
    /// Calls all vCPUs out of the guest.
    pub(super) fn attach(
        vcpus: Arc<VcpuGroup>,
        memory: GuestMemory,
        stops: Arc<Stops>,
        block_interrupts: bool,
    ) -> Result<Self, GuestError> {
        let guest = Self {
            actions: vec![Action::Default; vcpus.len()],
            vcpus,
            memory,
            stops,
            breakpoints: Breakpoints::default(),
            others_stay: false,
            current: 0,
            block_interrupts,
        };
        guest.stops.attach(true);
        guest.stop_all()?;
        Ok(guest)
    }

    /// Calls all vCPUs out of the guest, and forgets why some of them are: whoever met a breakpoint meets it again.
    fn stop_all(&self) -> Result<(), GuestError> {
        self.vcpus.hold_all(Holder::Debugger);
        let deadline = Instant::now() + PATIENCE;
        self.vcpus
            .wait_until_outside(deadline)
            .map_err(GuestError::Inside)?;
        self.stops.clear();
        Ok(())
    }

    fn vcpu(&self, index: usize) -> Result<MutexGuard<'_, Vcpu>, GuestError> {
        (index < self.vcpus.len())
            .then(|| self.vcpus.get(index))
            .flatten()
            .ok_or(GuestError::NoVcpu(index))
    }

    fn of_thread(&self, thread: Tid) -> Result<MutexGuard<'_, Vcpu>, GuestError> {
        self.vcpu(index(thread))
    }

    fn translate(&self, vcpu: &Vcpu, linear: u64) -> Option<(GuestAddress, usize)> {
        let registers = vcpu.special_registers().ok()?;
        paging::translate(&self.memory, &registers, linear)
    }

    /// Calls `action` with each piece of the `length` bytes at `linear` that lies together in guest memory: the address
    /// and its place in the whole. How many bytes there are before the first that is not mapped.
    fn for_each_piece(
        &mut self,
        thread: Tid,
        linear: u64,
        length: usize,
        mut action: impl FnMut(
            &mut Self,
            GuestAddress,
            std::ops::Range<usize>,
        ) -> Result<(), AccessError>,
    ) -> Result<usize, GuestError> {
        let registers = self.of_thread(thread)?.special_registers()?;
        let mut done = 0;
        while done < length {
            let piece = linear
                .checked_add(done as u64)
                .and_then(|linear| paging::translate(&self.memory, &registers, linear));
            let Some((address, rest)) = piece else {
                break;
            };
            let range = done..length.min(done.saturating_add(rest));
            let end = range.end;
            if action(self, address, range).is_err() {
                break;
            }
            done = end;
        }
        Ok(done)
    }

    /// Why `vcpu` stopped, unless that is the guest's own business.
    fn stop_reason(
        &mut self,
        vcpu: usize,
        exit: &kvm_debug_exit_arch,
    ) -> Result<Option<MultiThreadStopReason<u64>>, GuestError> {
        let tid = thread(vcpu);
        let reason = match self.breakpoints.cause(exit) {
            Cause::Software => MultiThreadStopReason::SwBreak(tid),
            Cause::Hardware(Access::Execute, _) => MultiThreadStopReason::HwBreak(tid),
            Cause::Hardware(Access::Data { kind, .. }, addr) => {
                MultiThreadStopReason::Watch { tid, kind, addr }
            }
            Cause::Step => MultiThreadStopReason::SignalWithThread {
                tid,
                signal: Signal::SIGTRAP,
            },
            Cause::Guest => {
                self.inject_breakpoint(vcpu)?;
                return Ok(None);
            }
        };
        self.current = vcpu;
        self.stop_all()?;
        Ok(Some(reason))
    }

    /// Gives the guest the exception of its own `int3`, and lets the vCPU go on.
    fn inject_breakpoint(&self, index: usize) -> Result<(), GuestError> {
        let mut debug = self.control(index);
        debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_BP;
        self.vcpus
            .wait_for_vcpu(index, Instant::now() + PATIENCE)
            .map_err(GuestError::Inside)?;
        self.vcpu(index)?.set_debug(&debug)?;
        self.vcpus.release([index], Holder::Debugger);
        Ok(())
    }

    fn control(&self, index: usize) -> kvm_guest_debug {
        let step = self.actions[index] == Action::Step;
        self.breakpoints.control(step, self.block_interrupts)
    }
}

/// Lets the machine go on as if there had been no debugger.
impl Drop for Guest {
    fn drop(&mut self) {
        // A vCPU that does not leave the guest, busy with a device, is held before it runs another instruction. It goes
        // on with what KVM was told, and puts that right itself when it stops for a debugger that is not there.
        let _ = self.stop_all();
        self.breakpoints.clear(&self.memory);
        for index in 0..self.vcpus.len() {
            if let Ok(vcpu) = self.vcpu(index) {
                let _ = vcpu.end_debugging();
            }
        }
        self.stops.attach(false);
        self.vcpus.release_all(Holder::Debugger);
    }
}

/// Threads are numbered from 1 on.
fn thread(index: usize) -> Tid {
    NonZeroUsize::MIN.saturating_add(index)
}

fn index(thread: Tid) -> usize {
    thread.get() - 1
}

/// An error that ends the session.
fn fatal(error: impl Into<GuestError>) -> TargetError<GuestError> {
    TargetError::Fatal(error.into())
}

impl Target for Guest {
    type Arch = Guest64;
    type Error = GuestError;

    fn base_ops(&mut self) -> BaseOps<'_, Self::Arch, Self::Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Guest {
    fn read_registers(
        &mut self,
        registers: &mut GuestRegisters,
        thread: Tid,
    ) -> TargetResult<(), Self> {
        *registers = self
            .of_thread(thread)
            .map_err(fatal)?
            .debug_registers()
            .map_err(fatal)?;
        Ok(())
    }

    fn write_registers(
        &mut self,
        registers: &GuestRegisters,
        thread: Tid,
    ) -> TargetResult<(), Self> {
        let vcpu = self.of_thread(thread).map_err(fatal)?;
        let before = vcpu.debug_registers().map_err(fatal)?;
        if !registers.fixed_part_is_that_of(&before) {
            return Err(TargetError::NonFatal);
        }
        // What KVM refuses is the user's mistake.
        vcpu.set_debug_registers(registers, &before)
            .map_err(|_| TargetError::NonFatal)
    }

    fn read_addrs(
        &mut self,
        start: u64,
        data: &mut [u8],
        thread: Tid,
    ) -> TargetResult<usize, Self> {
        let read = self
            .for_each_piece(thread, start, data.len(), |guest, address, range| {
                let data = &mut data[range];
                guest.memory.read(address, data)?;
                guest.breakpoints.hide(address, data);
                Ok(())
            })
            .map_err(fatal)?;
        match read {
            0 => Err(TargetError::NonFatal),
            read => Ok(read),
        }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], thread: Tid) -> TargetResult<(), Self> {
        let written = self
            .for_each_piece(thread, start, data.len(), |guest, address, range| {
                let memory = &guest.memory;
                guest.breakpoints.write(memory, address, &data[range])
            })
            .map_err(fatal)?;
        match written {
            written if written == data.len() => Ok(()),
            _ => Err(TargetError::NonFatal),
        }
    }

    fn list_active_threads(
        &mut self,
        thread_is_active: &mut dyn FnMut(Tid),
    ) -> Result<(), GuestError> {
        (0..self.vcpus.len()).map(thread).for_each(thread_is_active);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Guest {
    fn thread_extra_info(&self, thread: Tid, mut buffer: &mut [u8]) -> Result<usize, GuestError> {
        let room = buffer.len();
        let activity = self.of_thread(thread)?.state()?.activity;
        // What does not fit is not shown.
        let _ = write!(buffer, "vCPU {}, {activity}", index(thread));
        Ok(room - buffer.len())
    }
}

impl MultiThreadResume for Guest {
    fn resume(&mut self) -> Result<(), GuestError> {
        let others_stay = self.others_stay;
        let goes = |action: &Action| *action != Action::Default || !others_stay;
        let going: Vec<_> = (0..self.vcpus.len())
            .filter(|index| goes(&self.actions[*index]))
            .collect();
        for index in &going {
            self.vcpu(*index)?.set_debug(&self.control(*index))?;
        }
        self.vcpus.release(going, Holder::Debugger);
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), GuestError> {
        self.actions.fill(Action::Default);
        self.others_stay = false;
        Ok(())
    }

    fn set_resume_action_continue(
        &mut self,
        thread: Tid,
        _: Option<Signal>,
    ) -> Result<(), GuestError> {
        self.set_action(thread, Action::Continue)
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl Guest {
    fn set_action(&mut self, thread: Tid, action: Action) -> Result<(), GuestError> {
        let index = index(thread);
        let slot = self.actions.get_mut(index);
        *slot.ok_or(GuestError::NoVcpu(index))? = action;
        Ok(())
    }
}

impl MultiThreadSingleStep for Guest {
    fn set_resume_action_step(&mut self, thread: Tid, _: Option<Signal>) -> Result<(), GuestError> {
        self.set_action(thread, Action::Step)
    }
}

impl MultiThreadSchedulerLocking for Guest {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), GuestError> {
        self.others_stay = true;
        Ok(())
    }
}

impl BreakpointsExt for Guest {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Guest {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        // Where the current vCPU has nothing mapped another may.
        let physical = std::iter::once(self.current)
            .chain(0..self.vcpus.len())
            .filter_map(|index| self.vcpu(index).ok())
            .find_map(|vcpu| self.translate(&vcpu, address));
        let Some((physical, _)) = physical else {
            return Ok(false);
        };
        let added = self
            .breakpoints
            .add_software(&self.memory, address, physical);
        added.map_err(|_| TargetError::NonFatal)
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.breakpoints.remove_software(&self.memory, address))
    }
}

impl HwBreakpoint for Guest {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.breakpoints.add_hardware(address, Access::Execute))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.breakpoints.remove_hardware(address, Access::Execute))
    }
}

impl HwWatchpoint for Guest {
    fn add_hw_watchpoint(
        &mut self,
        address: u64,
        length: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        let access = Access::Data { length, kind };
        Ok(self.breakpoints.add_hardware(address, access))
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        length: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        let access = Access::Data { length, kind };
        Ok(self.breakpoints.remove_hardware(address, access))
    }
}

/// How a session waits while the guest runs.
pub(super) enum Session {}

impl BlockingEventLoop for Session {
    type Connection = Debugger;
    type StopReason = MultiThreadStopReason<u64>;
    type Target = Guest;

    fn wait_for_stop_reason(
        guest: &mut Guest,
        debugger: &mut Debugger,
    ) -> Result<Event<Self::StopReason>, WaitForStopReasonError<GuestError, std::io::Error>> {
        use gdbstub::conn::ConnectionExt;

        loop {
            match debugger
                .wait()
                .map_err(WaitForStopReasonError::Connection)?
            {
                Ready::Readable => {
                    let byte = debugger.read();
                    return byte
                        .map(Event::IncomingData)
                        .map_err(WaitForStopReasonError::Connection);
                }
                Ready::Ended => return Ok(Event::TargetStopped(MultiThreadStopReason::Exited(0))),
                Ready::Stopped => {
                    let Some((vcpu, exit)) = guest.stops.pop() else {
                        continue;
                    };
                    let reason = guest.stop_reason(vcpu, &exit);
                    if let Some(reason) = reason.map_err(WaitForStopReasonError::Target)? {
                        return Ok(Event::TargetStopped(reason));
                    }
                }
            }
        }
    }

    fn on_interrupt(guest: &mut Guest) -> Result<Option<Self::StopReason>, GuestError> {
        guest.stop_all()?;
        Ok(Some(MultiThreadStopReason::SignalWithThread {
            tid: thread(guest.current),
            signal: Signal::SIGINT,
        }))
    }
}
