// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Published ports.

use std::net::{TcpListener, UdpSocket};

use coracle_network::NetworkError;

use crate::world::{
    Guest, HOST4, HOST6, PATIENCE, SILENCE, World, ask_tcp, ask_udp, ip, links_like, nft,
    our_tables, serve_udp, set_sysctl,
};

tests![
    port_leads_into_the_guest_from_outside,
    port_leads_into_the_guest_from_the_host_itself,
    port_leads_into_the_guest_from_guests,
    two_machines_publish_at_once,
    udp_port_leads_into_the_guest,
    udp_client_that_goes_on_reaches_the_next_machine,
    ranges_lead_port_by_port,
    port_of_one_address_is_of_no_other,
    port_of_the_loopback_interface_stays_on_this_host,
    port_of_one_family_is_of_no_other,
    free_port_is_chosen,
    port_is_taken_for_others,
    port_in_use_is_told_with_its_process,
    port_in_use_is_told_with_its_machine,
    port_that_is_named_twice_is_refused,
    address_that_is_not_the_hosts_is_told,
    port_without_rules_answers_nobody,
    port_of_a_stopped_machine_is_free,
    port_needs_an_address_of_its_family,
];

fn port_leads_into_the_guest_from_outside() {
    let world = World::new();
    let attachment = world.attach("web", &["host-nat"], &["8080:80"]);
    let guest = Guest::start(&attachment);
    guest.space.serve_tcp("::", 80);

    // The client's own address arrives.
    assert_eq!(
        world.outside.ask_tcp(HOST4, 8080),
        crate::world::OUTSIDE4.parse().ok()
    );
    assert_eq!(
        world.outside.ask_tcp(HOST6, 8080),
        crate::world::OUTSIDE6.parse().ok()
    );
}

fn port_leads_into_the_guest_from_the_host_itself() {
    let world = World::new();
    let attachment = world.attach("web", &["host-nat"], &["8080:80"]);
    let guest = Guest::start(&attachment);
    guest.space.serve_tcp("::", 80);

    for address in ["127.0.0.1", "127.0.0.9", "::1", HOST4, HOST6] {
        assert!(ask_tcp(address, 8080, PATIENCE).is_some(), "{address}");
    }
}

fn port_leads_into_the_guest_from_guests() {
    let world = World::new();
    let attachment = world.attach("web", &["host-nat"], &["8080:80"]);
    let other = world.attach("other", &["host-nat"], &[]);
    let gateways: Vec<_> = attachment
        .routes()
        .iter()
        .filter_map(|route| route.gateway)
        .collect();
    let (guest, other) = (Guest::start(&attachment), Guest::start(&other));
    guest.space.serve_tcp("::", 80);

    for address in [
        HOST4.to_owned(),
        HOST6.to_owned(),
        gateways[0].to_string(),
        gateways[1].to_string(),
    ] {
        assert!(
            guest.space.ask_tcp(&address, 8080).is_some(),
            "itself, {address}"
        );
        assert!(
            other.space.ask_tcp(&address, 8080).is_some(),
            "another, {address}"
        );
    }
}

fn two_machines_publish_at_once() {
    let world = World::new();
    let one = world.attach("one", &["host-nat"], &["8081:80"]);
    let other = world.attach("other", &["host-nat"], &["8082:80"]);
    let (one, other) = (Guest::start(&one), Guest::start(&other));
    one.space.serve_tcp("::", 80);
    other.space.serve_tcp("::", 80);

    for address in ["127.0.0.1", "::1"] {
        for port in [8081, 8082] {
            assert!(
                ask_tcp(address, port, PATIENCE).is_some(),
                "{address} {port}"
            );
        }
    }
}

fn udp_port_leads_into_the_guest() {
    let world = World::new();
    let attachment = world.attach("dns", &["host-nat"], &["5353:53/udp"]);
    let guest = Guest::start(&attachment);
    guest.space.within(|| {
        serve_udp(guest.ipv4(), 53);
        serve_udp(guest.ipv6(), 53);
    });

    assert_eq!(
        world.outside.within(|| ask_udp(HOST4, 5353)),
        crate::world::OUTSIDE4.parse().ok()
    );
    assert_eq!(
        world.outside.within(|| ask_udp(HOST6, 5353)),
        crate::world::OUTSIDE6.parse().ok()
    );
    assert!(ask_udp("127.0.0.1", 5353).is_some());
    assert!(ask_udp("::1", 5353).is_some());
}

/// The kernel remembers where a flow goes for as long as packets come.
fn udp_client_that_goes_on_reaches_the_next_machine() {
    let world = World::new();
    let client = world
        .outside
        .within(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    client.set_read_timeout(Some(SILENCE)).unwrap();
    let ask = || {
        client.send_to(b"x", (HOST4, 5353)).unwrap();
        client.recv(&mut [0; 64]).is_ok()
    };
    let first = world.attach("first", &["host-nat"], &["5353:53/udp"]);
    let guest = Guest::start(&first);
    guest.space.within(|| serve_udp(guest.ipv4(), 53));
    assert!(ask());
    guest.stop();
    first.detach().unwrap();

    let is_answered_by_nobody = !ask();
    let second = world.attach("second", &["host-nat"], &["5353:53/udp"]);
    let guest = Guest::start(&second);
    guest.space.within(|| serve_udp(guest.ipv4(), 53));

    assert!(is_answered_by_nobody);
    assert!(ask());
}

fn ranges_lead_port_by_port() {
    let world = World::new();
    let attachment = world.attach(
        "web",
        &["host-nat"],
        &["8000-8002:90-92", "7000-7002:7000-7002"],
    );
    let guest = Guest::start(&attachment);
    guest.space.serve_tcp("::", 92);
    guest.space.serve_tcp("::", 7001);

    assert!(world.outside.ask_tcp(HOST4, 8002).is_some());
    assert!(world.outside.ask_tcp(HOST6, 7001).is_some());
    assert!(world.outside.gets_no_tcp_answer(HOST4, 8001));
    assert!(world.outside.gets_no_tcp_answer(HOST4, 7003));
}

fn port_of_one_address_is_of_no_other() {
    let world = World::new();
    ip("addr add 192.0.2.101/24 dev up0");
    let attachment = world.attach("web", &["host-nat"], &["192.0.2.101:8080:80"]);
    let guest = Guest::start(&attachment);
    guest.space.serve_tcp("::", 80);

    assert!(world.outside.ask_tcp("192.0.2.101", 8080).is_some());
    assert!(world.outside.gets_no_tcp_answer(HOST4, 8080));
    assert_eq!(ask_tcp("127.0.0.1", 8080, SILENCE), None);
}

fn port_of_the_loopback_interface_stays_on_this_host() {
    let world = World::new();
    let attachment = world.attach(
        "web",
        &["host-nat"],
        &["127.0.0.1:8080:80", "[::1]:8080:80"],
    );
    let guest = Guest::start(&attachment);
    guest.space.serve_tcp("::", 80);
    // A neighbour that sends to the host's loopback address over the wire, to a host that would not mind.
    set_sysctl("ipv4/conf/up0/route_localnet", "1");
    world.outside.within(|| {
        set_sysctl("ipv4/conf/all/route_localnet", "1");
        ip("addr del 127.0.0.1/8 dev lo");
        ip(&format!("route add 127.0.0.1 via {HOST4}"));
    });

    assert!(ask_tcp("127.0.0.1", 8080, PATIENCE).is_some());
    assert!(ask_tcp("::1", 8080, PATIENCE).is_some());
    assert!(world.outside.gets_no_tcp_answer(HOST4, 8080));
    assert!(world.outside.gets_no_tcp_answer(HOST6, 8080));
    assert!(world.outside.gets_no_tcp_answer("127.0.0.1", 8080));
}

fn port_of_one_family_is_of_no_other() {
    let world = World::new();
    let attachment = world.attach("web", &["host-nat"], &["0.0.0.0:8080:80", "[::]:8081:80"]);
    let guest = Guest::start(&attachment);
    guest.space.serve_tcp("::", 80);

    assert!(world.outside.ask_tcp(HOST4, 8080).is_some());
    assert!(world.outside.ask_tcp(HOST6, 8081).is_some());
    assert!(world.outside.gets_no_tcp_answer(HOST6, 8080));
    assert!(world.outside.gets_no_tcp_answer(HOST4, 8081));
}

fn free_port_is_chosen() {
    let world = World::new();
    let attachment = world.attach("web", &["host-nat"], &["80", "90-91/udp"]);
    let guest = Guest::start(&attachment);
    guest.space.serve_tcp("::", 80);

    let ports = attachment.ports();
    assert_eq!(
        ports.iter().map(|mapping| mapping.port).collect::<Vec<_>>(),
        [80, 90, 91]
    );
    assert!(
        world
            .outside
            .ask_tcp(HOST4, ports[0].host_port.unwrap())
            .is_some()
    );
}

fn port_is_taken_for_others() {
    let world = World::new();
    let _attachment = world.attach("web", &["host-nat"], &["8080:80", "8080:80/udp"]);

    for address in ["0.0.0.0:8080", "127.0.0.1:8080", "[::]:8080", "[::1]:8080"] {
        assert!(TcpListener::bind(address).is_err(), "{address}");
        assert!(UdpSocket::bind(address).is_err(), "{address}");
    }
}

fn port_in_use_is_told_with_its_process() {
    let world = World::new();
    let _listener = TcpListener::bind("127.0.0.1:8080").unwrap();

    let error = world
        .refusal("web", &["host-nat"], &["8079:79", "8080:80"])
        .to_string();

    let this = std::fs::read_to_string("/proc/self/comm").unwrap();
    let expected = format!(
        "port *:8080/tcp of this host is in use by {} (process {})",
        this.trim(),
        std::process::id()
    );
    assert_eq!(error, expected);
    assert!(
        links_like("coracle").is_empty()
            && our_tables().is_empty()
            && world.remembered().is_empty()
    );
    assert!(TcpListener::bind("0.0.0.0:8079").is_ok());
}

fn port_in_use_is_told_with_its_machine() {
    let world = World::new();
    let _web = world.attach("web", &["host-nat"], &["8000-8100:8000-8100"]);

    let error = world
        .refusal("other", &["host-nat"], &["127.0.0.1:8080:80"])
        .to_string();

    assert_eq!(
        error,
        "port 127.0.0.1:8080/tcp of this host is in use by machine web"
    );
}

fn port_that_is_named_twice_is_refused() {
    let world = World::new();

    let error = world
        .refusal("web", &["host-nat"], &["8080:80", "8080:81"])
        .to_string();

    assert_eq!(
        error,
        "port 8080/tcp of this host is named twice: 8080:80/tcp and 8080:81/tcp"
    );
}

fn address_that_is_not_the_hosts_is_told() {
    let world = World::new();

    let error = world
        .refusal("web", &["host-nat"], &["198.51.100.1:8080:80"])
        .to_string();

    assert_eq!(
        error,
        "port 198.51.100.1:8080/tcp cannot be published: no interface of this host has the address 198.51.100.1"
    );
}

fn port_without_rules_answers_nobody() {
    let world = World::new();
    let _attachment = world.attach("web", &["host-nat"], &["8080:80"]);
    // What an administrator may do at any time; the kernel lets nobody remove the machine's own table.
    nft("flush ruleset");

    assert_eq!(ask_tcp("127.0.0.1", 8080, SILENCE), None);
}

fn port_of_a_stopped_machine_is_free() {
    let world = World::new();
    world
        .attach("web", &["host-nat"], &["8080:80"])
        .detach()
        .unwrap();

    assert!(TcpListener::bind("[::]:8080").is_ok());
    assert!(our_tables().is_empty());
}

fn port_needs_an_address_of_its_family() {
    let mut world = World::new();
    world.config.ipv6 = coracle_network::Subnet::Off;

    let error = world.refusal("web", &["host-nat"], &["[::1]:8080:80"]);

    assert!(
        matches!(error, NetworkError::CannotPublish { .. }),
        "{error}"
    );
    assert!(links_like("coracle").is_empty());
}
