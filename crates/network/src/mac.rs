// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::NetworkError;

/// An Ethernet address, printed as `02:00:5e:10:00:01`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// An address of these bytes, as they are sent.
    #[must_use]
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// A unicast address that no vendor has: its first byte is 02.
    #[must_use]
    pub fn locally_administered(rest: [u8; 5]) -> Self {
        let [a, b, c, d, e] = rest;
        Self([0x02, a, b, c, d, e])
    }

    /// The six bytes, as they are sent.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// Whether one interface can have this address: it is neither a group's nor zero.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }

    /// The address in what the kernel says of a link; none for links without Ethernet.
    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for MacAddress {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let refused = || NetworkError::BadMacAddress {
            text: crate::name::shorten(text),
        };
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2)
                .ok_or_else(refused)?;
            // Not by `from_str_radix` alone, which takes a sign.
            if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(refused());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| refused())?;
        }
        let address = Self(bytes);
        if parts.next().is_some() || !address.is_unicast() {
            return Err(refused());
        }
        Ok(address)
    }
}

impl TryFrom<String> for MacAddress {
    type Error = NetworkError;

    fn try_from(text: String) -> Result<Self, NetworkError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    proptest! {
        #[test]
        fn address_is_read_as_it_is_printed(rest in any::<[u8; 5]>()) {
            let address = MacAddress::locally_administered(rest);

            prop_assert_eq!(address.to_string().parse::<MacAddress>().unwrap(), address);
        }
    }

    #[rstest]
    #[case("")]
    #[case("02:00:00:00:00")]
    #[case("02:00:00:00:00:00:00")]
    #[case("02:00:00:00:00:+1")]
    #[case("2:0:0:0:0:1")]
    #[case("01:00:5e:00:00:01")]
    #[case("00:00:00:00:00:00")]
    #[case("ff:ff:ff:ff:ff:ff")]
    fn text_that_is_no_interfaces_address_is_refused(#[case] text: &str) {
        assert!(text.parse::<MacAddress>().is_err());
    }
}
