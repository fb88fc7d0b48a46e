// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a device interrupts its driver: one line, and the reasons that the driver reads and
//! acknowledges (virtio 1.3, sections 2.3 and 4.2.2).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// Reason bit: the device has used buffers of some queue.
const USED_BUFFERS: u32 = 1;
/// Reason bit: the configuration has changed, or the device needs a reset.
const CONFIG_CHANGED: u32 = 1 << 1;

/// A device's interrupt. Clones share one line and one set of reasons; any thread may use them.
#[derive(Clone, Debug)]
pub struct Interrupt {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    line: EventFd,
    reasons: AtomicU32,
    needs_reset: AtomicBool,
    generation: AtomicU32,
    used_buffers_always: AtomicBool,
}

impl Interrupt {
    /// An interrupt that is raised by writing to `line`: an eventfd that KVM turns into an
    /// interrupt (irqfd).
    #[must_use]
    pub fn new(line: EventFd) -> Self {
        Self {
            shared: Arc::new(Shared {
                line,
                reasons: AtomicU32::new(0),
                needs_reset: AtomicBool::new(false),
                generation: AtomicU32::new(0),
                used_buffers_always: AtomicBool::new(false),
            }),
        }
    }

    /// Tells the driver that buffers were used. Ask [`Queue::needs_interrupt`] first.
    ///
    /// [`Queue::needs_interrupt`]: crate::Queue::needs_interrupt
    pub fn used_buffers(&self) {
        self.raise(USED_BUFFERS);
    }

    /// Tells the driver that the configuration has changed. Call it once the new values can be
    /// read.
    pub fn config_changed(&self) {
        self.shared.generation.fetch_add(1, Ordering::Release);
        self.raise(CONFIG_CHANGED);
    }

    /// Tells the driver that the device gave up and works again only after a reset
    /// (section 2.1.2). The answer to a broken ring.
    pub fn needs_reset(&self) {
        self.shared.needs_reset.store(true, Ordering::Release);
        self.raise(CONFIG_CHANGED);
    }

    /// The eventfd that raises the line, for those who raise it without us (vhost).
    #[must_use]
    pub fn line(&self) -> &EventFd {
        &self.shared.line
    }

    /// For devices whose backend writes to the line itself: the transport does not see when
    /// buffers are used, so from now on the driver always reads that some were. Looking in vain
    /// costs it little; not looking would lose requests.
    pub fn always_report_used_buffers(&self) {
        self.shared
            .used_buffers_always
            .store(true, Ordering::Release);
    }

    /// What the driver reads in InterruptStatus.
    pub(crate) fn reasons(&self) -> u32 {
        let always = self.shared.used_buffers_always.load(Ordering::Acquire);
        let reasons = self.shared.reasons.load(Ordering::Acquire);
        reasons | if always { USED_BUFFERS } else { 0 }
    }

    /// The driver has handled these reasons.
    pub(crate) fn acknowledge(&self, reasons: u32) {
        self.shared.reasons.fetch_and(!reasons, Ordering::AcqRel);
    }

    pub(crate) fn is_reset_needed(&self) -> bool {
        self.shared.needs_reset.load(Ordering::Acquire)
    }

    /// Counts the changes of the configuration.
    pub(crate) fn generation(&self) -> u32 {
        self.shared.generation.load(Ordering::Acquire)
    }

    /// Forgets reasons and the need for a reset, when the driver resets the device.
    pub(crate) fn reset(&self) {
        self.shared.reasons.store(0, Ordering::Release);
        self.shared.needs_reset.store(false, Ordering::Release);
    }

    fn raise(&self, reason: u32) {
        self.shared.reasons.fetch_or(reason, Ordering::AcqRel);
        // Fails only when 2^64 - 2 interrupts are pending: the line is up then in any case.
        let _ = self.shared.line.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::interrupt;

    #[test]
    fn used_buffers_raises_the_line_with_its_reason() {
        let interrupt = interrupt();

        interrupt.used_buffers();

        assert_eq!(interrupt.reasons(), USED_BUFFERS);
        assert_eq!(interrupt.line().read().unwrap(), 1);
    }

    #[test]
    fn acknowledging_one_reason_keeps_the_other() {
        let interrupt = interrupt();
        interrupt.used_buffers();
        interrupt.config_changed();

        interrupt.acknowledge(USED_BUFFERS);

        assert_eq!(interrupt.reasons(), CONFIG_CHANGED);
    }

    #[test]
    fn each_change_of_configuration_is_a_new_generation() {
        let interrupt = interrupt();
        let before = interrupt.generation();

        interrupt.config_changed();

        assert_ne!(interrupt.generation(), before);
        assert_eq!(interrupt.reasons(), CONFIG_CHANGED);
    }

    #[test]
    fn needs_reset_lasts_until_reset() {
        let interrupt = interrupt();

        interrupt.needs_reset();
        interrupt.acknowledge(CONFIG_CHANGED);
        assert!(interrupt.is_reset_needed());

        interrupt.reset();
        assert!(!interrupt.is_reset_needed());
    }

    #[test]
    fn used_buffers_reported_always_survive_acknowledgement_and_reset() {
        let interrupt = interrupt();

        interrupt.always_report_used_buffers();
        interrupt.acknowledge(u32::MAX);
        interrupt.reset();

        assert_eq!(interrupt.reasons(), USED_BUFFERS);
    }
}
