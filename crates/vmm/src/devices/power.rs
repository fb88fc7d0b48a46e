// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ports by which a guest turns the machine off or resets it, as its ACPI tables say.

use std::ops::Range;
use std::sync::Arc;

use coracle_boot::layout::{
    RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_POWER_OFF, SLEEP_STATUS_PORT,
};
use coracle_devices::legacy::PioDevice;

use crate::Exit;
use crate::ending::Ending;

/// Sleep control, sleep status, reset.
pub(super) const PORTS: Range<u16> = SLEEP_CONTROL_PORT..RESET_PORT + 1;

const _: () = assert!(SLEEP_CONTROL_PORT < SLEEP_STATUS_PORT && SLEEP_STATUS_PORT < RESET_PORT);

/// The registers. They read as 0: nothing is pending.
pub(super) struct Power {
    ending: Arc<Ending>,
}

impl Power {
    pub(super) fn new(ending: Arc<Ending>) -> Self {
        Self { ending }
    }
}

impl PioDevice for Power {
    fn read(&mut self, _: u16, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u16, data: &[u8]) {
        let exit = match (SLEEP_CONTROL_PORT.saturating_add(offset), data) {
            (SLEEP_CONTROL_PORT, [SLEEP_POWER_OFF]) => Exit::Shutdown,
            (RESET_PORT, [RESET_VALUE]) => Exit::Reset,
            _ => return,
        };
        self.ending.report(Ok(exit));
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::power_off(SLEEP_CONTROL_PORT, &[0x34], Some(Exit::Shutdown))]
    #[case::reset(RESET_PORT, &[1], Some(Exit::Reset))]
    #[case::other_sleep_state(SLEEP_CONTROL_PORT, &[0x24], None)]
    #[case::sleep_type_without_enable(SLEEP_CONTROL_PORT, &[0x14], None)]
    #[case::other_reset_value(RESET_PORT, &[0], None)]
    #[case::status(SLEEP_STATUS_PORT, &[0x34], None)]
    #[case::word(RESET_PORT, &[1, 0], None)]
    fn write_ends_the_machine_only_as_its_tables_say(
        #[case] port: u16,
        #[case] data: &[u8],
        #[case] expected: Option<Exit>,
    ) {
        let ending = Arc::new(Ending::new().unwrap());
        let mut power = Power::new(Arc::clone(&ending));

        power.write(port - PORTS.start, data);

        let found = ending.take().map(Result::unwrap);
        assert_eq!(found, expected);
    }
}
