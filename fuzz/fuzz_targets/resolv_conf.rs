// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's resolver configuration, parts of which the network that the host is in may write.
#![no_main]

use coracle_network::fuzzing::parse_resolv_conf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let dns = parse_resolv_conf(bytes);
    assert_eq!(parse_resolv_conf(dns.to_resolv_conf().as_bytes()), dns);
});
