// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One command of the control queue (virtio 1.3, section 5.1.6.5): what it asks for, and the answer.

use coracle_virtio::Chain;
use thiserror::Error;

use super::super::features::{CTRL_GUEST_OFFLOADS, CTRL_RX, GUEST_OFFLOADS};

/// Classes, and the commands in them.
const RX: u8 = 0;
const RX_PROMISC: u8 = 0;
const RX_ALLMULTI: u8 = 1;
const MAC: u8 = 1;
const MAC_TABLE_SET: u8 = 0;
const OFFLOADS: u8 = 5;
const OFFLOADS_SET: u8 = 0;

/// Answers.
const OK: u8 = 0;
const ERR: u8 = 1;

/// What a driver asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// To filter what it receives. The device may deliver more than that, and does.
    Filter,
    /// To leave these offloads to it from now on, as feature bits, and no others.
    Offloads(u64),
    /// Something that the device does not do.
    Unknown,
}

/// A command that cannot be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ControlError {
    /// No byte for the answer.
    #[error("control command {head} has no device-writable byte")]
    NoRoom {
        /// Index of the chain's first descriptor.
        head: u16,
    },
}

/// The command in `chain`, of a driver with these features.
#[must_use]
pub fn command(chain: &Chain, agreed: u64) -> Command {
    let mut reader = chain.readable();
    let Ok([class, command]) = reader.read_obj::<[u8; 2]>() else {
        return Command::Unknown;
    };
    let has = |feature| agreed & feature != 0;
    match (class, command) {
        (RX, RX_PROMISC | RX_ALLMULTI) | (MAC, MAC_TABLE_SET) if has(CTRL_RX) => Command::Filter,
        (OFFLOADS, OFFLOADS_SET) if has(CTRL_GUEST_OFFLOADS) => {
            match reader.read_obj().map(u64::from_le_bytes) {
                Ok(wanted) if wanted & !(agreed & GUEST_OFFLOADS) == 0 => Command::Offloads(wanted),
                _ => Command::Unknown,
            }
        }
        _ => Command::Unknown,
    }
}

/// Tells the driver whether its command was carried out; returns the bytes written.
///
/// # Errors
///
/// [`ControlError::NoRoom`] when nothing is writable.
pub fn answer(chain: &Chain, is_done: bool) -> Result<u32, ControlError> {
    let mut writer = chain.writable();
    writer
        .write_all(&[if is_done { OK } else { ERR }])
        .map_err(|_| ControlError::NoRoom { head: chain.head() })?;
    Ok(writer.written())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::super::features::{GUEST_CSUM, GUEST_TSO4, GUEST_TSO6};
    use super::*;
    use crate::testing::{chain, written};

    const AGREED: u64 = CTRL_RX | CTRL_GUEST_OFFLOADS | GUEST_CSUM | GUEST_TSO4;

    fn offloads(bits: u64) -> Vec<u8> {
        [&[5, 0][..], &bits.to_le_bytes()].concat()
    }

    #[rstest]
    #[case::promiscuous(&[0, 0, 1], AGREED, Command::Filter)]
    #[case::all_multicast(&[0, 1, 0], AGREED, Command::Filter)]
    #[case::address_table(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0], AGREED, Command::Filter)]
    #[case::filter_not_agreed(&[0, 0, 1], AGREED & !CTRL_RX, Command::Unknown)]
    #[case::further_filter(&[0, 2, 1], AGREED, Command::Unknown)]
    #[case::address(&[1, 1, 2, 0, 0, 0, 0, 1], AGREED, Command::Unknown)]
    #[case::queues(&[4, 0, 2, 0], AGREED, Command::Unknown)]
    #[case::no_class(&[0xff, 0xff], AGREED, Command::Unknown)]
    #[case::class_alone(&[0], AGREED, Command::Unknown)]
    #[case::offloads(&offloads(GUEST_CSUM), AGREED, Command::Offloads(GUEST_CSUM))]
    #[case::no_offloads(&offloads(0), AGREED, Command::Offloads(0))]
    #[case::offload_not_agreed(&offloads(GUEST_TSO6), AGREED, Command::Unknown)]
    #[case::feature_that_is_no_offload(&offloads(CTRL_RX), AGREED, Command::Unknown)]
    #[case::offloads_cut_short(&[5, 0, 0, 0], AGREED, Command::Unknown)]
    #[case::offloads_not_agreed(&offloads(0), AGREED & !CTRL_GUEST_OFFLOADS, Command::Unknown)]
    fn command_is_what_it_says(
        #[case] bytes: &[u8],
        #[case] agreed: u64,
        #[case] expected: Command,
    ) {
        assert_eq!(command(&chain(&[bytes], &[1]), agreed), expected);
    }

    #[test]
    fn command_may_be_split() {
        let bytes = offloads(GUEST_CSUM);
        let parts: Vec<_> = bytes.chunks(3).collect();

        assert_eq!(
            command(&chain(&parts, &[1]), AGREED),
            Command::Offloads(GUEST_CSUM)
        );
    }

    #[test]
    fn chain_without_a_command_is_none() {
        assert_eq!(command(&chain(&[], &[1]), AGREED), Command::Unknown);
    }

    #[rstest]
    #[case::done(true, 0)]
    #[case::not_done(false, 1)]
    fn answer_is_one_byte(#[case] is_done: bool, #[case] expected: u8) {
        let chain = chain(&[&[0, 0, 1]], &[4]);

        assert_eq!(answer(&chain, is_done), Ok(1));
        assert_eq!(written(&chain, 1), [expected]);
    }

    #[test]
    fn command_without_room_for_an_answer_is_refused() {
        let chain = chain(&[&[0, 0, 1]], &[]);

        let head = chain.head();
        assert_eq!(answer(&chain, true), Err(ControlError::NoRoom { head }));
    }
}
