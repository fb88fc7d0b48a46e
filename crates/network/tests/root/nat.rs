// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The default network.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::thread;

use coracle_network::{Addressing, Attachment, NetworkError, Subnet};

use crate::world::{
    Guest, HOST4, HOST6, OUTSIDE4, OUTSIDE6, SILENCE, World, ask_udp, frames_for_the_guest, ip,
    links_like, nft, run, serve_tcp, serve_udp, set_sysctl, sysctl,
};

tests![
    guest_reaches_the_outside_with_the_hosts_address,
    guest_reaches_the_host_at_its_gateway,
    guests_do_not_reach_each_other,
    guests_that_may_reach_each_other_by_their_own_addresses,
    guest_is_not_reached_from_outside,
    forged_source_goes_nowhere,
    hosts_loopback_interface_is_out_of_a_guests_reach,
    flush_of_all_rules_does_not_open_the_hosts_loopback_interface,
    questions_for_other_addresses_of_the_host_are_not_answered,
    flood_of_forged_neighbours_is_not_noted_down,
    guest_is_no_router_of_the_host,
    host_without_ipv6_gives_ipv4,
    addresses_are_given_once,
    machine_gets_its_address_again,
    subnet_of_four_addresses_has_one_guest,
    wanted_address_and_mac_are_given,
    wanted_address_that_another_has_is_refused,
    subnet_that_a_route_leads_into_is_refused,
    uplinks_smaller_frames_are_the_guests,
    another_firewall_that_drops_is_told_to_accept,
    names_of_the_host_are_the_guests,
    many_machines_come_and_go_at_once,
    no_network_is_nothing,
    choice_that_a_network_does_not_leave_is_refused,
    host_that_has_all_lacks_nothing,
];

fn guest_reaches_the_outside_with_the_hosts_address() {
    let world = World::new();
    let port = world.outside.serve_tcp("::", 0);
    let attachment = world.attach("web", &["host-nat"], &[]);
    let guest = Guest::start(&attachment);

    assert_eq!(guest.space.ask_tcp(OUTSIDE4, port), HOST4.parse().ok());
    assert_eq!(guest.space.ask_tcp(OUTSIDE6, port), HOST6.parse().ok());
}

fn guest_reaches_the_host_at_its_gateway() {
    let world = World::new();
    let port = serve_tcp("::", 0);
    let attachment = world.attach("web", &["host-nat"], &[]);
    let guest = Guest::start(&attachment);

    for route in attachment.routes() {
        let gateway = route.gateway.unwrap().to_string();
        let own = guest
            .addresses
            .iter()
            .find(|address| address.contains(':') == gateway.contains(':'));
        assert_eq!(
            guest.space.ask_tcp(&gateway, port),
            own.unwrap().parse().ok(),
            "{gateway}"
        );
    }
    assert_eq!(attachment.routes().len(), 2);
}

fn guests_do_not_reach_each_other() {
    let world = World::new();
    let one = world.attach("one", &["host-nat"], &[]);
    let other = world.attach("other", &["host-nat"], &["8080:80"]);
    let (one, other) = (Guest::start(&one), Guest::start(&other));
    let port = other.space.serve_tcp("::", 80);

    assert!(one.space.gets_no_tcp_answer(other.ipv4(), port));
    assert!(one.space.gets_no_tcp_answer(other.ipv6(), port));
    // Published ports are for all.
    assert!(one.space.ask_tcp(HOST4, 8080).is_some());
    nft("flush ruleset");
    assert!(one.space.gets_no_tcp_answer(other.ipv4(), port));
    assert!(one.space.gets_no_tcp_answer(other.ipv6(), port));
}

fn guests_that_may_reach_each_other_by_their_own_addresses() {
    let mut world = World::new();
    let alone = world.attach("alone", &["host-nat"], &[]);
    world.config.isolate = false;
    let one = world.attach("one", &["host-nat"], &[]);
    let other = world.attach("other", &["host-nat"], &[]);
    let [alone, one, other] = [&alone, &one, &other].map(Guest::start);
    let port = other.space.serve_tcp("::", 0);

    assert_eq!(
        one.space.ask_tcp(other.ipv4(), port),
        one.ipv4().parse().ok()
    );
    assert_eq!(
        one.space.ask_tcp(other.ipv6(), port),
        one.ipv6().parse().ok()
    );
    assert!(alone.space.gets_no_tcp_answer(other.ipv4(), port));
}

fn guest_is_not_reached_from_outside() {
    let world = World::new();
    let attachment = world.attach("web", &["host-nat"], &[]);
    let guest = Guest::start(&attachment);
    let port = guest.space.serve_tcp("::", 0);
    world
        .outside
        .ip(&format!("route add {} via {HOST4}", guest.ipv4()));
    world
        .outside
        .ip(&format!("-6 route add {} via {HOST6}", guest.ipv6()));

    assert!(world.outside.gets_no_tcp_answer(guest.ipv4(), port));
    assert!(world.outside.gets_no_tcp_answer(guest.ipv6(), port));
}

fn forged_source_goes_nowhere() {
    let world = World::new();
    let attachment = world.attach("web", &["host-nat"], &[]);
    let guest = Guest::start(&attachment);
    let [ipv4, ipv6] = ["0.0.0.0:7777", "[::]:7778"].map(|address| {
        let socket = world.outside.within(|| UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        socket
    });
    let send = |source: &str, target: String, word: &[u8]| {
        guest.space.within(|| {
            let socket = UdpSocket::bind((source, 0)).unwrap();
            (0..3).for_each(|_| drop(socket.send_to(word, &target)));
        });
    };
    // Once the gateway and the outside know each other, nothing waits or is lost.
    let port = world.outside.serve_tcp("::", 0);
    for address in [OUTSIDE4, OUTSIDE6] {
        guest.space.ask_tcp(address, port).unwrap();
    }
    guest.space.ip("addr add 198.51.100.7/32 dev eth0");
    guest
        .space
        .ip("addr add 2001:db8:bad::7/128 dev eth0 nodad");
    for (own, forged, target) in [
        (guest.ipv4(), "198.51.100.7", format!("{OUTSIDE4}:7777")),
        (
            guest.ipv6(),
            "2001:db8:bad::7",
            format!("[{OUTSIDE6}]:7778"),
        ),
    ] {
        send(own, target.clone(), b"own");
        send(forged, target, b"forged");
    }

    for socket in [ipv4, ipv6] {
        let mut buffer = [0; 16];
        let mut words = Vec::new();
        while let Ok(length) = socket.recv(&mut buffer) {
            words.push(buffer[..length].to_vec());
        }
        assert_eq!(words, [b"own"; 3]);
    }
}

/// What a guest's process hears from this host's loopback interface, when the guest sends through its gateway what is for it.
fn answer_of_the_loopback_interface(attachment: &Attachment) -> Option<IpAddr> {
    serve_udp("127.0.0.1", 7779);
    let guest = Guest::start(attachment);
    let gateway = attachment.routes()[0].gateway.unwrap();
    guest.space.within(|| {
        set_sysctl("ipv4/conf/all/route_localnet", "1");
        ip("addr del 127.0.0.1/8 dev lo");
        ip(&format!(
            "route add 127.0.0.1 via {gateway} dev eth0 onlink"
        ));
        ask_udp("127.0.0.1", 7779)
    })
}

fn hosts_loopback_interface_is_out_of_a_guests_reach() {
    let world = World::new();
    // A published port is what opens the way back to the loopback interface.
    let attachment = world.attach("web", &["host-nat"], &["127.0.0.1:7780:80"]);
    let tap = links_like("coracle").remove(0);

    let answer = answer_of_the_loopback_interface(&attachment);

    assert_eq!(answer, None);
    assert_eq!(sysctl(&format!("ipv4/conf/{tap}/route_localnet")), "1");
}

fn flush_of_all_rules_does_not_open_the_hosts_loopback_interface() {
    let world = World::new();
    let attachment = world.attach("web", &["host-nat"], &["127.0.0.1:7780:80"]);
    nft("flush ruleset");

    let answer = answer_of_the_loopback_interface(&attachment);

    assert_eq!(answer, None);
}

/// What else a host could do that is asked on one interface for what it has on another.
fn questions_for_other_addresses_of_the_host_are_not_answered() {
    let world = World::new();
    let attachment = world.attach("web", &["host-nat"], &[]);
    let interface = &attachment.interfaces()[0];
    let IpAddr::V4(own) = interface.addresses[0].addr() else {
        panic!("{:?}", interface.addresses)
    };
    let wire = File::from(interface.tap.try_clone().unwrap());

    (&wire)
        .write_all(&arp_request(
            own.octets(),
            HOST4.parse::<Ipv4Addr>().unwrap().octets(),
        ))
        .unwrap();
    thread::sleep(SILENCE);

    let is_arp = |frame: &Vec<u8>| frame[22..24] == [8, 6];
    assert_eq!(
        frames_for_the_guest(&wire)
            .iter()
            .filter(|frame| is_arp(frame))
            .count(),
        0
    );
}

fn flood_of_forged_neighbours_is_not_noted_down() {
    let world = World::new();
    // What some distributions set; the kernel takes the greater of this and the tap's own.
    set_sysctl("ipv4/conf/all/rp_filter", "2");
    let attachment = world.attach("web", &["host-nat"], &[]);
    let tap = links_like("coracle").remove(0);
    let gateways: Vec<IpAddr> = attachment
        .routes()
        .iter()
        .filter_map(|route| route.gateway)
        .collect();
    let wire = File::from(attachment.interfaces()[0].tap.try_clone().unwrap());
    let [IpAddr::V4(gateway4), IpAddr::V6(gateway6)] = gateways[..] else {
        panic!("{gateways:?}")
    };

    for number in 1..=2000_u16 {
        let [high, low] = number.to_be_bytes();
        (&wire)
            .write_all(&arp_request([198, 18, high, low], gateway4.octets()))
            .unwrap();
        for network in [0xfe80, 0x2001] {
            let source = Ipv6Addr::new(network, 0, 0, 0, 0, 0, 1, number);
            (&wire)
                .write_all(&neighbour_solicitation(source, gateway6))
                .unwrap();
        }
    }

    let noted = ip(&format!("neigh show dev {tap}"));
    assert_eq!(noted, "");
}

/// Who has the target? Behind the header that a tap wants before each frame.
fn arp_request(sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0; 10];
    frame.extend([0xff; 6]);
    frame.extend([2, 0, 0, 0, 0, 1]);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend([2, 0, 0, 0, 0, 1]);
    frame.extend(sender);
    frame.extend([0; 6]);
    frame.extend(target);
    frame
}

/// The same of IPv6, with the sender's Ethernet address to be noted down.
fn neighbour_solicitation(sender: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    message.extend([1, 1, 2, 0, 0, 0, 0, 1]);
    let pseudo_header = [
        &sender.octets()[..],
        &target.octets(),
        &[0, 0, 0, 32, 0, 0, 0, 58],
    ]
    .concat();
    let sum: u32 = [&pseudo_header[..], &message]
        .concat()
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = vec![0; 10];
    frame.extend([0xff; 6]);
    frame.extend([2, 0, 0, 0, 0, 1]);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
    frame.extend(sender.octets());
    frame.extend(target.octets());
    frame.extend(message);
    frame
}

fn guest_is_no_router_of_the_host() {
    let world = World::new();
    let _attachment = world.attach("web", &["host-nat"], &[]);
    let tap = links_like("coracle").remove(0);

    assert_eq!(sysctl(&format!("ipv6/conf/{tap}/accept_ra")), "0");
    assert_eq!(sysctl(&format!("ipv6/conf/{tap}/accept_redirects")), "0");
}

fn host_without_ipv6_gives_ipv4() {
    let world = World::new();
    set_sysctl("ipv6/conf/all/disable_ipv6", "1");
    let port = world.outside.serve_tcp("0.0.0.0", 0);

    let attachment = world.attach("web", &["host-nat"], &["8080:80"]);

    let guest = Guest::start(&attachment);
    assert_eq!(guest.addresses.len(), 1);
    assert_eq!(guest.space.ask_tcp(OUTSIDE4, port), HOST4.parse().ok());
}

fn addresses_are_given_once() {
    let world = World::new();
    let attachments: Vec<_> = (0..4)
        .map(|index| world.attach(&format!("m{index}"), &["host-nat"], &[]))
        .collect();

    let mut addresses: Vec<_> = attachments
        .iter()
        .flat_map(|one| one.interfaces()[0].addresses.clone())
        .collect();
    let mut macs: Vec<_> = attachments
        .iter()
        .map(|one| one.interfaces()[0].mac)
        .collect();
    addresses.sort();
    addresses.dedup();
    macs.sort();
    macs.dedup();

    assert_eq!((addresses.len(), macs.len()), (8, 4));
}

fn machine_gets_its_address_again() {
    let world = World::new();
    let first = world.attach("web", &["host-nat"], &[]);
    let addresses = first.interfaces()[0].addresses.clone();
    first.detach().unwrap();

    let second = world.attach("web", &["host-nat"], &[]);

    assert_eq!(second.interfaces()[0].addresses, addresses);
}

fn subnet_of_four_addresses_has_one_guest() {
    let mut world = World::new();
    world.config.ipv4 = Subnet::Given("10.99.0.0/30".parse().unwrap());
    world.config.ipv6 = Subnet::Off;
    let first = world.attach("first", &["host-nat"], &[]);

    let error = world.refusal("second", &["host-nat"], &[]);
    first.detach().unwrap();
    let third = world.attach("third", &["host-nat"], &[]);

    assert!(matches!(error, NetworkError::Exhausted { .. }), "{error}");
    assert_eq!(
        third.interfaces()[0].addresses,
        ["10.99.0.2/32".parse().unwrap()]
    );
    assert_eq!(links_like("coracle").len(), 1);
}

fn wanted_address_and_mac_are_given() {
    let mut world = World::new();
    world.config.ipv4 = Subnet::Given("10.99.0.0/24".parse().unwrap());
    let addressing = Addressing {
        addresses: vec!["10.99.0.77/24".parse().unwrap()],
        mac: "02:00:00:00:00:77".parse().ok(),
        mtu: Some(1400),
        ..Addressing::default()
    };

    let attachment = world
        .try_attach("web", &["host-nat"], &[], &addressing)
        .unwrap();

    let interface = &attachment.interfaces()[0];
    assert_eq!(interface.addresses[0], "10.99.0.77/32".parse().unwrap());
    assert_eq!(interface.mac.to_string(), "02:00:00:00:00:77");
    assert_eq!(interface.mtu, 1400);
}

fn wanted_address_that_another_has_is_refused() {
    let mut world = World::new();
    world.config.ipv4 = Subnet::Given("10.99.0.0/24".parse().unwrap());
    let want = |address: &str| Addressing {
        addresses: vec![address.parse().unwrap()],
        ..Addressing::default()
    };
    let _first = world
        .try_attach("first", &["host-nat"], &[], &want("10.99.0.77/24"))
        .unwrap();

    let taken = world
        .try_attach("second", &["host-nat"], &[], &want("10.99.0.77/24"))
        .unwrap_err();
    let outside = world
        .try_attach("second", &["host-nat"], &[], &want("10.98.0.77/24"))
        .unwrap_err();

    assert_eq!(
        [taken.to_string(), outside.to_string()],
        [
            "address 10.99.0.77 cannot be given: another machine has it",
            "address 10.98.0.77 cannot be given: it is not of the subnet 10.99.0.0/24",
        ]
    );
    assert_eq!(links_like("coracle").len(), 1);
}

fn subnet_that_a_route_leads_into_is_refused() {
    let mut world = World::new();
    world.config.ipv4 = Subnet::Given("192.0.2.0/24".parse().unwrap());

    let error = world.refusal("web", &["host-nat"], &[]);

    assert_eq!(
        error.to_string(),
        "subnet 192.0.2.0/24 collides with the route to 192.0.2.0/24 on interface up0: choose another subnet"
    );
    assert!(links_like("coracle").is_empty());
}

fn uplinks_smaller_frames_are_the_guests() {
    let world = World::new();
    ip("link set up0 mtu 1420");

    let attachment = world.attach("web", &["host-nat"], &[]);

    assert_eq!(attachment.interfaces()[0].mtu, 1420);
}

fn another_firewall_that_drops_is_told_to_accept() {
    let world = World::new();
    nft("table ip filter { chain DOCKER-USER { return; };
         chain FORWARD { type filter hook forward priority 0; policy drop; jump DOCKER-USER; }; };
         table ip6 filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; };");
    let before = run("nft", "list ruleset");
    let port = world.outside.serve_tcp("::", 0);

    let attachment = world.attach("web", &["host-nat"], &[]);
    let second = world.attach("second", &["host-nat"], &[]);
    let guest = Guest::start(&attachment);
    let reached = [
        guest.space.ask_tcp(OUTSIDE4, port),
        guest.space.ask_tcp(OUTSIDE6, port),
    ];
    let rules = run("nft", "list chain ip filter DOCKER-USER");
    guest.stop();
    attachment.detach().unwrap();
    second.detach().unwrap();

    assert_eq!(reached, [HOST4.parse().ok(), HOST6.parse().ok()]);
    assert_eq!(rules.matches("accept").count(), 2, "{rules}");
    assert_eq!(run("nft", "list ruleset"), before);
}

fn names_of_the_host_are_the_guests() {
    let world = World::new();

    let attachment = world.attach("web", &["host-nat"], &[]);

    assert_eq!(
        attachment.dns().to_resolv_conf(),
        format!("nameserver {OUTSIDE4}\nsearch example.org\n")
    );
}

fn many_machines_come_and_go_at_once() {
    let world = World::new();
    let space = File::open("/proc/thread-self/ns/net").unwrap();

    thread::scope(|scope| {
        for thread in 0..4 {
            let (world, space) = (&world, &space);
            scope.spawn(move || {
                rustix::thread::move_into_link_name_space(
                    std::os::fd::AsFd::as_fd(space),
                    Some(rustix::thread::LinkNameSpaceType::Network),
                )
                .unwrap();
                for round in 0..8 {
                    let id = format!("m{thread}-{round}");
                    world.attach(&id, &["host-nat"], &["80"]).detach().unwrap();
                }
            });
        }
    });

    assert!(links_like("coracle").is_empty());
    assert_eq!(crate::world::our_tables(), [""; 0]);
}

fn no_network_is_nothing() {
    let world = World::new();

    let attachment = world.attach("web", &["none"], &[]);

    assert!(attachment.interfaces().is_empty() && attachment.routes().is_empty());
    assert!(matches!(
        world.refusal("other", &["none"], &["80:80"]),
        NetworkError::CannotPublish { .. }
    ));
}

fn choice_that_a_network_does_not_leave_is_refused() {
    let world = World::new();
    let gateway = Addressing {
        gateways: vec!["192.0.2.9".parse().unwrap()],
        ..Addressing::default()
    };
    let mtu = Addressing {
        mtu: Some(1400),
        ..Addressing::default()
    };

    for (network, addressing) in [
        ("host-nat", &gateway),
        ("none", &mtu),
        ("web", &mtu),
        ("web", &gateway),
    ] {
        let error = world
            .try_attach("vm", &[network], &[], addressing)
            .unwrap_err();
        assert!(
            matches!(error, NetworkError::NotForUsers { .. }),
            "{network}: {error}"
        );
    }
}

fn host_that_has_all_lacks_nothing() {
    let world = World::new();

    let findings = coracle_network::check::check(&world.config);

    assert!(
        findings.iter().all(|finding| !finding.is_fatal),
        "{findings:?}"
    );
    assert!(!run("nft", "list tables").contains("coracle"));
}
