// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device status and its life cycle (virtio 1.3, sections 2.1 and 3.1.1).

use std::fmt;

/// How far a driver has got with a device: what it wrote to the status register.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct DeviceStatus(u32);

impl DeviceStatus {
    /// The driver has seen the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// The driver knows how to drive it.
    pub const DRIVER: u32 = 1 << 1;
    /// The driver is ready: the device is live.
    pub const DRIVER_OK: u32 = 1 << 2;
    /// Both sides have agreed on the features.
    pub const FEATURES_OK: u32 = 1 << 3;
    /// The device has given up until it is reset.
    pub const NEEDS_RESET: u32 = 1 << 6;
    /// The driver has given up on the device.
    pub const FAILED: u32 = 1 << 7;

    /// The bits, without [`NEEDS_RESET`](Self::NEEDS_RESET), which is not the driver's.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `bits` are set.
    #[must_use]
    pub const fn has(self, bits: u32) -> bool {
        self.0 & bits == bits
    }

    /// Whether the driver may choose features now: it drives the device, and the choice is open.
    #[must_use]
    pub const fn is_negotiating(self) -> bool {
        self.0 == Self::ACKNOWLEDGE | Self::DRIVER
    }

    /// Whether the driver may set queues up now: features are agreed, the device is not live.
    #[must_use]
    pub const fn is_setting_up(self) -> bool {
        self.0 == Self::ACKNOWLEDGE | Self::DRIVER | Self::FEATURES_OK
    }

    /// Whether the device is live: the driver is ready, and has not given up since.
    #[must_use]
    pub const fn is_live(self) -> bool {
        self.has(Self::DRIVER_OK) && !self.has(Self::FAILED)
    }

    /// The step that leads from this status to `next`, as the driver wrote it; `None` if there
    /// is no such step. Bits are never cleared but by a reset, and each needs the ones before.
    pub(crate) const fn step_to(self, next: u32) -> Option<Step> {
        if next == 0 {
            return Some(Step::Reset);
        }
        // A driver that adds a bit to what it has read writes this one back: not its bit.
        let next = next & !Self::NEEDS_RESET;
        let added = next & !self.0;
        if next & self.0 != self.0 || self.has(Self::FAILED) || added == 0 {
            return None;
        }
        let step = match (self.0, added) {
            (_, Self::FAILED) => Step::Failed,
            (0, Self::ACKNOWLEDGE) => Step::Introduced,
            // Nothing happens between these two, and some drivers set both at once.
            (0, BOTH) | (Self::ACKNOWLEDGE, Self::DRIVER) => Step::Introduced,
            (BOTH, Self::FEATURES_OK) => Step::FeaturesOk,
            (AGREED, Self::DRIVER_OK) => Step::DriverOk,
            _ => return None,
        };
        Some(step)
    }

    /// The status with `bits` set as well.
    pub(crate) const fn with(self, bits: u32) -> Self {
        Self(self.0 | (bits & !Self::NEEDS_RESET))
    }
}

const BOTH: u32 = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
const AGREED: u32 = BOTH | DeviceStatus::FEATURES_OK;

/// A legal step of the life cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Back to the start.
    Reset,
    /// ACKNOWLEDGE, DRIVER or both were set.
    Introduced,
    /// FEATURES_OK was asked for: the device checks the features first.
    FeaturesOk,
    /// DRIVER_OK: the device goes live.
    DriverOk,
    /// The driver gave up.
    Failed,
}

impl fmt::Debug for DeviceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceStatus({:#x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const LEGAL: [u32; 5] = [0, 1, 3, 11, 15];

    #[rstest]
    #[case::acknowledge(0, 1, Step::Introduced)]
    #[case::acknowledge_and_driver_at_once(0, 3, Step::Introduced)]
    #[case::driver(1, 3, Step::Introduced)]
    #[case::features(3, 11, Step::FeaturesOk)]
    #[case::ready(11, 15, Step::DriverOk)]
    #[case::read_back_with_needs_reset(11, 15 | 64, Step::DriverOk)]
    #[case::failed_at_the_start(0, 128, Step::Failed)]
    #[case::failed_when_live(15, 15 | 128, Step::Failed)]
    #[case::reset_at_the_start(0, 0, Step::Reset)]
    #[case::reset_when_live(15, 0, Step::Reset)]
    #[case::reset_after_failure(128 | 3, 0, Step::Reset)]
    fn legal_step(#[case] from: u32, #[case] to: u32, #[case] step: Step) {
        assert_eq!(DeviceStatus(from).step_to(to), Some(step));
    }

    #[rstest]
    #[case::driver_without_acknowledge(0, 2)]
    #[case::features_before_driver(1, 9)]
    #[case::features_together_with_driver(1, 11)]
    #[case::ready_before_features(3, 7)]
    #[case::features_and_ready_at_once(3, 15)]
    #[case::everything_at_once(0, 15)]
    #[case::driver_cleared(3, 1)]
    #[case::features_cleared(11, 3)]
    #[case::ready_cleared(15, 11)]
    #[case::needs_reset_set_by_the_driver(3, 3 | 64)]
    #[case::unknown_bit(3, 3 | 16)]
    #[case::unknown_bit_beside_a_legal_one(3, 11 | 0x100)]
    #[case::nothing_new(11, 11)]
    #[case::progress_after_failure(128 | 3, 128 | 11)]
    fn illegal_step(#[case] from: u32, #[case] to: u32) {
        assert_eq!(DeviceStatus(from).step_to(to), None);
    }

    #[test]
    fn every_write_in_every_state_leads_to_a_state_of_the_specification() {
        for from in LEGAL {
            for to in 1..=u32::from(u16::MAX) {
                let status = DeviceStatus(from);
                let reached = status.step_to(to).map(|_| status.with(to).bits() & !128);

                assert!(
                    reached.is_none_or(|bits| LEGAL.contains(&bits)),
                    "{from} {to}"
                );
            }
        }
    }
}
