// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The thread of a vCPU.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::{Builder, JoinHandle};

use super::kick::{Kicks, Target};
use super::{Vcpu, run};
use crate::bus::Buses;
use crate::ending::Ending;
use crate::filters::Filter;
use crate::{Exit, Fault};

/// What all vCPU threads of a machine share.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) buses: Arc<Buses>,
    pub(crate) ending: Arc<Ending>,
    /// Set before the threads are kicked for the last time.
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) filter: Option<Arc<Filter>>,
    pub(crate) kicks: Kicks,
}

/// A vCPU that runs.
#[derive(Debug)]
pub(crate) struct VcpuThread {
    thread: JoinHandle<()>,
    kicks: Kicks,
}

impl VcpuThread {
    /// Runs `vcpu` on a thread of its own, which reports the machine's end and ends itself when told to.
    pub(crate) fn spawn(mut vcpu: Vcpu, context: Context) -> io::Result<Self> {
        let kicks = context.kicks;
        let thread = Builder::new()
            .name(format!("vcpu {}", vcpu.index))
            .spawn(move || {
                if let Some(ended) = main(&mut vcpu, &context).transpose() {
                    context.ending.report(ended);
                }
            })?;
        Ok(Self { thread, kicks })
    }

    /// Calls the thread back from the guest. It goes in again unless it was told to stop.
    pub(crate) fn kick(&self) {
        self.kicks.kick(&self.thread);
    }

    /// Waits for the thread to end.
    pub(crate) fn join(self) {
        // A panic was printed when it happened, and there is nothing to be had from the thread.
        let _ = self.thread.join();
    }
}

fn main(vcpu: &mut Vcpu, context: &Context) -> Result<Option<Exit>, Fault> {
    let index = vcpu.index;
    if let Some(filter) = &context.filter {
        filter
            .apply()
            .map_err(|source| Fault::Confine { index, source })?;
    }
    let mut target = Target::new(&mut vcpu.fd);
    run::run(target.fd(), &context.buses, &context.stop)
        .map_err(|source| Fault::Vcpu { index, source })
}
