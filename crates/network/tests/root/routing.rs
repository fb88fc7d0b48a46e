// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A host that forwards for its guests forwards for nobody else.

use crate::holder::Holder;
use crate::world::{
    Guest, HOST4, HOST6, OUTSIDE4, OUTSIDE6, SideNetwork, World, forwarding, nft, our_tables,
    set_forwarding, set_sysctl, sysctl,
};

tests![
    host_that_was_no_router_is_none_for_others,
    flushed_rules_against_strangers_come_back,
    host_that_was_a_router_goes_on,
    forwarding_ends_with_the_last_machine,
    forwarding_ends_after_a_killed_machine,
    network_that_another_engine_makes_meanwhile_works_and_goes_on,
    host_goes_on_listening_to_its_own_router,
];

fn host_that_was_no_router_is_none_for_others() {
    let world = World::new();
    let side = SideNetwork::new(&world);
    let attachment = world.attach("web", &["host-nat"], &["8080:80"]);
    let guest = Guest::start(&attachment);
    guest.space.serve_tcp("::", 80);
    let port = side.space.serve_tcp("::", 0);

    for (address, seen_as) in [
        (side.address4, "198.51.100.1"),
        (side.address6, "2001:db8:51::1"),
    ] {
        assert_eq!(guest.space.ask_tcp(address, port), seen_as.parse().ok());
        assert!(world.outside.gets_no_tcp_answer(address, port), "{address}");
    }
    assert!(side.space.ask_tcp(HOST4, 8080).is_some());
    assert!(side.space.ask_tcp(HOST6, 8080).is_some());
}

fn flushed_rules_against_strangers_come_back() {
    let world = World::new();
    let side = SideNetwork::new(&world);
    let _first = world.attach("first", &["host-nat"], &[]);
    nft("flush ruleset");
    let _second = world.attach("second", &["host-nat"], &[]);
    let port = side.space.serve_tcp("::", 0);

    assert!(world.outside.gets_no_tcp_answer(side.address4, port));
}

fn host_that_was_a_router_goes_on() {
    let world = World::new();
    set_forwarding("1");
    let side = SideNetwork::new(&world);
    let attachment = world.attach("web", &["host-nat"], &[]);
    let port = side.space.serve_tcp("::", 0);

    assert!(world.outside.ask_tcp(side.address4, port).is_some());
    assert!(world.outside.ask_tcp(side.address6, port).is_some());
    attachment.detach().unwrap();
    assert_eq!(forwarding(), ["1", "1"]);
}

fn forwarding_ends_with_the_last_machine() {
    let world = World::new();
    let one = world.attach("one", &["host-nat"], &[]);
    let other = world.attach("other", &["host-nat"], &[]);

    one.detach().unwrap();
    let with_one_left = forwarding();
    other.detach().unwrap();

    assert_eq!(with_one_left, ["1", "1"]);
    assert_eq!(forwarding(), ["0", "0"]);
}

fn forwarding_ends_after_a_killed_machine() {
    let world = World::new();
    Holder::start(&world, "web", "host-nat", &[]).kill();

    coracle_network::remove_leftovers("web", &world.config).unwrap();

    assert_eq!(forwarding(), ["0", "0"]);
}

/// Its engine finds that the host forwards, and so leaves that alone.
fn network_that_another_engine_makes_meanwhile_works_and_goes_on() {
    let world = World::new();
    let attachment = world.attach("web", &["host-nat"], &[]);
    let side = SideNetwork::new(&world);
    nft("table inet engine {
             chain in { type nat hook prerouting priority -100; tcp dport 8081 dnat ip to 198.51.100.2:80; };
             chain out { type nat hook postrouting priority 100; oifname \"up0\" masquerade; }; };");
    let port = world.outside.serve_tcp("::", 0);
    side.space.serve_tcp("::", 80);
    let reached = || {
        [
            side.space.ask_tcp(OUTSIDE4, port),
            side.space.ask_tcp(OUTSIDE6, port),
            world.outside.ask_tcp(HOST4, 8081),
        ]
    };

    let meanwhile = reached();
    attachment.detach().unwrap();
    let afterwards = reached();
    let left = our_tables();
    nft("delete table inet engine");
    coracle_network::sweep(&world.config).unwrap();

    let expected = [HOST4, HOST6, OUTSIDE4].map(|address| address.parse().ok());
    assert_eq!((meanwhile, afterwards), (expected, expected));
    // Strangers stay out for as long as it is we who let the host forward.
    assert_eq!(left, ["coracle-strangers"]);
    assert_eq!(
        (forwarding(), our_tables().len()),
        (["0", "0"].map(str::to_owned), 0)
    );
}

fn host_goes_on_listening_to_its_own_router() {
    let world = World::new();
    crate::world::ip("link add up1 type veth peer name up1peer");
    set_sysctl("ipv6/conf/up1/accept_ra", "0");
    set_sysctl("ipv6/conf/default/accept_ra", "1");

    let _attachment = world.attach("web", &["host-nat"], &[]);

    assert_eq!(sysctl("ipv6/conf/up0/accept_ra"), "2");
    assert_eq!(sysctl("ipv6/conf/up1/accept_ra"), "0");
    // Of interfaces to come nobody knows what they lead to.
    assert_eq!(sysctl("ipv6/conf/default/accept_ra"), "1");
}
