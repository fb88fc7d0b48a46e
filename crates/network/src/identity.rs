// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names and addresses that follow from who a machine is: the same machine on the same host has the same ones again.

use std::fs;

use sha2::{Digest, Sha256};

use crate::mac::MacAddress;

/// What a host's names are derived from: two hosts on one network that run a machine of the same name must not give it the
/// same Ethernet address.
fn host() -> Vec<u8> {
    ["/etc/machine-id", "/proc/sys/kernel/random/boot_id"]
        .iter()
        .find_map(|path| fs::read(path).ok().filter(|bytes| !bytes.is_empty()))
        .unwrap_or_default()
}

fn digest(purpose: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(purpose);
    for part in parts {
        // With its length, so that no two lists give the same bytes.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// The first bytes of a digest, as many as are asked for.
fn first<const N: usize>(digest: [u8; 32]) -> [u8; N] {
    const { assert!(N <= 32) };
    let mut bytes = [0; N];
    bytes.copy_from_slice(&digest[..N]);
    bytes
}

/// The Ethernet address of a machine's interface.
pub(crate) fn guest_mac(id: &str, interface: usize) -> MacAddress {
    let digest = digest(
        "guest mac",
        &[&host(), id.as_bytes(), &interface.to_le_bytes()],
    );
    MacAddress::locally_administered(first(digest))
}

/// The Ethernet address of a tap that is a bridge's port. A bridge takes the lowest of its ports' addresses for its own, and
/// would change it whenever a machine comes; this one is higher than any vendor's, and than all but a few that are random.
pub(crate) fn port_mac(id: &str, interface: usize) -> MacAddress {
    let [a, b, c] = first(digest(
        "port mac",
        &[&host(), id.as_bytes(), &interface.to_le_bytes()],
    ));
    MacAddress::new([0xfe, 0xff, 0xff, a, b, c])
}

/// A name for an interface, different for each attempt.
pub(crate) fn interface_name(prefix: &str, id: &str, interface: usize, attempt: u32) -> String {
    let digest = digest(
        "interface",
        &[
            id.as_bytes(),
            &interface.to_le_bytes(),
            &attempt.to_le_bytes(),
        ],
    );
    format!("{prefix}{:08x}", u32::from_be_bytes(first(digest)))
}

/// Whether a name is one that [`interface_name`] makes.
pub(crate) fn is_interface_name(prefix: &str, name: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|digits| {
        digits.len() == 8
            && digits
                .bytes()
                .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Where the search for a free address starts.
pub(crate) fn address_seed(id: &str) -> u64 {
    u64::from_be_bytes(first(digest("address", &[id.as_bytes()])))
}

/// The 40 bits of this host's unique local prefix (RFC 4193, section 3.2.2).
pub(crate) fn global_id() -> [u8; 5] {
    first(digest("unique local prefix", &[&host()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_and_interfaces_differ_and_stay() {
        assert_eq!(guest_mac("a", 0), guest_mac("a", 0));
        assert_ne!(guest_mac("a", 0), guest_mac("a", 1));
        assert_ne!(guest_mac("a", 0), guest_mac("b", 0));
        assert_ne!(
            interface_name("coracle", "a", 0, 0),
            interface_name("coracle", "a", 0, 1)
        );
    }

    #[test]
    fn guests_address_is_locally_administered_and_one_interfaces() {
        let mac = guest_mac("a", 0);

        assert_eq!(mac.bytes()[0], 0x02);
        assert!(mac.is_unicast());
    }

    #[test]
    fn name_is_told_from_such_as_start_like_it() {
        assert!(is_interface_name(
            "coracle",
            &interface_name("coracle", "a", 0, 0)
        ));
        assert!(!is_interface_name("coracle", "coracle-custom"));
        assert!(!is_interface_name("coracle", "coracle1"));
        assert!(!is_interface_name("coracle", "coracle0000000g"));
    }

    #[test]
    fn name_fits_the_kernels_limit() {
        assert!(crate::name::check_interface(&interface_name("coracle", "a", 0, 0)).is_ok());
    }
}
