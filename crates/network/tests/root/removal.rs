// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Nothing is left, however a machine ends.

use std::net::TcpListener;
use std::path::Path;
use std::thread;
use std::time::Duration;

use coracle_network::{Addressing, NetworkError};

use crate::holder::Holder;
use crate::world::{
    Guest, HOST4, OUTSIDE4, SHARED_TABLES, World, ip, links_like, nft, our_tables, run,
};

tests![
    detached_machine_leaves_nothing,
    dropped_machine_leaves_nothing,
    shared_rules_stay_until_the_last_machine_leaves,
    killed_machine_leaves_what_the_kernel_cannot_know,
    killed_machines_id_is_taken_again,
    table_of_a_process_that_is_about_to_be_gone_is_waited_for,
    running_machine_is_not_removed,
    sweep_removes_the_dead_alone,
    what_never_was_is_removed_without_a_word,
    rules_that_somebody_flushed_come_back,
    rules_of_another_version_are_replaced,
    tables_and_links_with_names_like_ours_are_left_alone,
    ids_that_are_paths_are_refused,
    machine_with_a_broken_record_is_removed_and_taken_again,
    program_that_no_configuration_could_name_is_not_run_for_a_record,
    directory_that_others_may_write_to_is_not_trusted,
];

/// What a machine could leave in this namespace and on disk.
fn state_of(world: &World) -> [String; 5] {
    [
        ip("-o link"),
        ip("route") + &ip("-6 route"),
        // A host that forwards answers to its subnets' anycast addresses; it goes on forwarding.
        ip("-6 route show table local type local"),
        run("nft", "list ruleset"),
        world.remembered().join(" "),
    ]
}

fn detached_machine_leaves_nothing() {
    let world = World::new();
    let before = state_of(&world);

    world
        .attach("web", &["host-nat"], &["8080:80"])
        .detach()
        .unwrap();

    assert_eq!(state_of(&world), before);
}

fn dropped_machine_leaves_nothing() {
    let world = World::new();
    let before = state_of(&world);

    drop(world.attach("web", &["host-nat"], &["8080:80"]));

    assert_eq!(state_of(&world), before);
}

fn shared_rules_stay_until_the_last_machine_leaves() {
    let world = World::new();
    let one = world.attach("one", &["host-nat"], &[]);
    let other = world.attach("other", &["host-nat"], &[]);

    one.detach().unwrap();
    let after_one = our_tables();
    other.detach().unwrap();

    // And the other's own.
    assert_eq!(after_one.len(), SHARED_TABLES.len() + 1);
    assert!(our_tables().is_empty());
}

fn killed_machine_leaves_what_the_kernel_cannot_know() {
    let world = World::new();
    let before = state_of(&world);
    let holder = Holder::start(&world, "web", "host-nat", &["8080:80"]);
    // Beside them what the machine may send, and its ports.
    assert_eq!(our_tables().len(), SHARED_TABLES.len() + 2);

    holder.kill();
    let after = [links_like("coracle"), our_tables(), world.remembered()];
    let port_is_free = TcpListener::bind("0.0.0.0:8080").is_ok();
    coracle_network::remove_leftovers("web", &world.config).unwrap();
    coracle_network::remove_leftovers("web", &world.config).unwrap();

    assert_eq!(
        after,
        [
            vec![],
            SHARED_TABLES.map(str::to_owned).to_vec(),
            vec!["web".to_owned()]
        ]
    );
    assert!(port_is_free);
    assert_eq!(state_of(&world), before);
}

fn killed_machines_id_is_taken_again() {
    let world = World::new();
    let holder = Holder::start(&world, "web", "host-nat", &["8080:80"]);
    let address = holder.address.clone();
    holder.kill();

    let attachment = world.attach("web", &["host-nat"], &["8080:80"]);

    assert_eq!(
        attachment.interfaces()[0].addresses[0].addr().to_string(),
        address
    );
}

/// The kernel gives back what a process had one after the other.
fn table_of_a_process_that_is_about_to_be_gone_is_waited_for() {
    let world = World::new();
    let first = world.attach("web", &["host-nat"], &[]);
    let tap = links_like("coracle").remove(0);
    first.detach().unwrap();
    nft(&format!("table netdev {tap} {{ }}"));
    let later = thread::spawn(move || {
        thread::sleep(Duration::from_millis(500));
        nft(&format!("delete table netdev {tap}"));
    });

    let second = world.try_attach("web", &["host-nat"], &[], &Addressing::default());
    later.join().unwrap();

    second.unwrap().detach().unwrap();
}

fn running_machine_is_not_removed() {
    let world = World::new();
    let _holder = Holder::start(&world, "web", "host-nat", &[]);

    let errors = [
        coracle_network::remove_leftovers("web", &world.config).unwrap_err(),
        world.refusal("web", &["host-nat"], &[]),
    ];

    assert!(
        errors
            .iter()
            .all(|error| matches!(error, NetworkError::InUse { .. })),
        "{errors:?}"
    );
    assert_eq!(links_like("coracle").len(), 1);
}

fn sweep_removes_the_dead_alone() {
    let world = World::new();
    let living = world.attach("living", &["host-nat"], &[]);
    Holder::start(&world, "dead", "host-nat", &[]).kill();

    let removed = coracle_network::sweep(&world.config).unwrap();

    assert_eq!(removed, ["dead"]);
    assert_eq!(world.remembered(), ["living"]);
    assert!(our_tables().contains(&"coracle".to_owned()));
    living.detach().unwrap();
}

fn what_never_was_is_removed_without_a_word() {
    let world = World::new();

    coracle_network::remove_leftovers("nobody", &world.config).unwrap();

    assert!(coracle_network::sweep(&world.config).unwrap().is_empty());
}

fn rules_that_somebody_flushed_come_back() {
    let world = World::new();
    let _first = world.attach("first", &["host-nat"], &[]);
    nft("flush ruleset");
    let port = world.outside.serve_tcp("0.0.0.0", 0);

    let second = world.attach("second", &["host-nat"], &[]);

    assert_eq!(
        Guest::start(&second).space.ask_tcp(OUTSIDE4, port),
        HOST4.parse().ok()
    );
}

fn rules_of_another_version_are_replaced() {
    let world = World::new();
    nft(
        "table inet coracle { comment \"coracle-network rules 0\"; chain old { type filter hook forward priority 0; drop; }; };",
    );
    let port = world.outside.serve_tcp("0.0.0.0", 0);

    let attachment = world.attach("web", &["host-nat"], &[]);

    assert_eq!(
        Guest::start(&attachment).space.ask_tcp(OUTSIDE4, port),
        HOST4.parse().ok()
    );
    assert!(!run("nft", "list table inet coracle").contains("chain old"));
}

fn tables_and_links_with_names_like_ours_are_left_alone() {
    let world = World::new();
    nft("table inet coracle_custom { }; table inet coracle-rules { };");
    ip("link add coracle-lab type bridge");
    let before = state_of(&world);

    world.attach("web", &["host-nat"], &[]).detach().unwrap();
    coracle_network::sweep(&world.config).unwrap();

    assert_eq!(state_of(&world), before);
}

fn ids_that_are_paths_are_refused() {
    let world = World::new();

    for id in ["..", "../../etc", "/etc", ""] {
        assert!(
            matches!(
                world.refusal(id, &["host-nat"], &[]),
                NetworkError::BadId { .. }
            ),
            "{id}"
        );
        assert!(
            coracle_network::remove_leftovers(id, &world.config).is_err(),
            "{id}"
        );
    }
    assert!(!Path::new(&world.config.state).exists());
}

/// As a power failure may leave it.
fn machine_with_a_broken_record_is_removed_and_taken_again() {
    let world = World::new();
    for record in ["", "{", r#"{"cni": 7}"#] {
        write_record(&world, record);
        coracle_network::remove_leftovers("web", &world.config).unwrap();
        assert!(world.remembered().is_empty(), "{record}");

        write_record(&world, record);
        let attachment = world.attach("web", &["host-nat"], &[]);
        attachment.detach().unwrap();
    }
}

fn program_that_no_configuration_could_name_is_not_run_for_a_record() {
    let world = World::new();
    let (program, trace) = (world.path("program"), world.path("trace"));
    std::fs::write(&program, format!("#!/bin/sh\ntouch {}\n", trace.display())).unwrap();
    run("chmod", &format!("+x {}", program.display()));
    write_record(
        &world,
        &format!(
            r#"{{"cni": [{{"list": {{"cniVersion": "1.0.0", "name": "net", "plugins": [{{"type": "{}"}}]}},
                "interface": "eth0", "capabilities": {{}}, "result": null}}]}}"#,
            program.display()
        ),
    );

    coracle_network::remove_leftovers("web", &world.config).unwrap();

    assert!(!trace.exists());
}

fn write_record(world: &World, text: &str) {
    let directory = world.config.state.join("machines/web");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("record"), text).unwrap();
}

fn directory_that_others_may_write_to_is_not_trusted() {
    let world = World::new();
    std::fs::create_dir_all(&world.config.state).unwrap();
    run("chmod", &format!("777 {}", world.config.state.display()));

    let error = world.refusal("web", &["host-nat"], &[]);

    assert_eq!(
        error.to_string(),
        format!("{}: cannot trust it", world.config.state.display())
    );
}
