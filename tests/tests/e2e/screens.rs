//! What a person reads of a cable in each state that it is in sooner or later: `doctor`, `nodes` and `explain NODE`, from the tools
//! of two scripted Macs through real agents and a real controller. `INSTA_UPDATE=always` writes the snapshots anew.

use nightshift_tests::{
    mac::{Mac, plug},
    suite::{Case, case},
    wait,
};

use crate::macs::Macs;

/// Of which the screens tell. What it sees at the other end is of m1.
const NODE: &str = "m2";

/// A link that was lost stays one that is to hold for longer than any of this takes.
const CONFIG: &str = "[gangs]\nlink_settle_ms = 3600000\n";

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("screens::cable_ready", &[], ready),
        case("screens::cable_out", &[], out),
        case("screens::cable_back_in", &[], back_in),
        case("screens::bridge_took_the_port_after_a_reboot", &[], bridged),
        case("screens::rdma_off_at_the_peer", &[], rdma_off),
        case("screens::thunderbolt_4", &[], thunderbolt_4),
        case("screens::devinfo_hangs", &[], devinfo_hangs),
        case("screens::no_ipv4_yet", &[], no_ipv4),
    ]
}

async fn start(state: &str) -> Macs {
    let macs = Macs::start_with(&format!("screens-{state}"), CONFIG).await;
    macs.cable_is("rdma", &[]).await;
    macs
}

async fn ready() {
    check(start("ready").await, "ready", &[]).await;
}

async fn out() {
    let mut macs = start("out").await;
    macs.change(unplug);
    macs.there_is_no_cable().await;
    check(macs, "out", &[]).await;
}

async fn back_in() {
    let mut macs = start("back-in").await;
    let before = macs.macs.clone();
    macs.change(unplug);
    macs.there_is_no_cable().await;
    macs.change(|macs| *macs = before);
    macs.cable_is("rdma", &[]).await;
    check(macs, "back_in", &[]).await;
}

async fn bridged() {
    let mut macs = start("bridged").await;
    macs.cluster.kill_agent(NODE).await;
    macs.change(|[_, b]| {
        b.boot = "M2-BOOT-2".to_owned();
        b.ports[0].bridged = true;
        b.ports[0].address = None;
    });
    macs.start_agent(1);
    macs.cable_is("down", &["bridge0 of m2 has taken en3, and carries nothing itself"]).await;
    check(macs, "bridged", &[NODE]).await;
}

async fn rdma_off() {
    let mut macs = start("rdma-off").await;
    macs.change(|[a, b]| {
        a.rdma = false;
        b.ports[0].plugged.as_mut().expect("it is plugged in").rdma = false;
    });
    macs.cable_is("tcp", &["RDMA is off on m1"]).await;
    check(macs, "rdma_off", &[]).await;
}

async fn thunderbolt_4() {
    let mut macs = start("thunderbolt-4").await;
    macs.change(|macs| {
        macs[0].thunderbolt_5 = false;
        let [a, b] = macs;
        plug(a, b);
        a.ports[0].plugged.as_mut().expect("it is plugged in").gigabits_per_s = 40;
    });
    let flaws = [
        "m1 has no rdma_en3 though RDMA is on",
        "the link runs at 40 Gb/s: the cable or one of the two Macs can do no more",
    ];
    macs.cable_is("tcp", &flaws).await;
    check(macs, "thunderbolt_4", &[]).await;
}

async fn devinfo_hangs() {
    let mut macs = start("devinfo-hangs").await;
    macs.change(|[_, b]| b.devinfo_hangs = true);
    macs.cable_is("tcp", &["not all is known of the RDMA of m2"]).await;
    macs.check_is(NODE, "tool-hangs", "fail").await;
    check(macs, "devinfo_hangs", &[]).await;
}

async fn no_ipv4() {
    let mut macs = start("no-ipv4").await;
    let before = macs.macs.clone();
    macs.change(unplug);
    macs.there_is_no_cable().await;
    macs.change(|macs| {
        *macs = before;
        macs[1].ports[0].address = None;
    });
    macs.cable_is("down", &["en3 of m2 has no IPv4 address of its own yet"]).await;
    check(macs, "no_ipv4", &[NODE]).await;
}

fn unplug(macs: &mut [Mac; 2]) {
    for mac in macs {
        mac.ports[0].plugged = None;
        mac.ports[0].address = None;
    }
}

/// The three screens against their snapshots, once only those are told what their ports lack that lack something at the end: what
/// came in between is told for a moment longer.
async fn check(macs: Macs, state: &str, lacking: &[&str]) {
    wait::eventually(&format!("{lacking:?} to lack something"), wait::SOON, async || {
        let told = macs.told_of("link-preparation").await;
        if told == lacking { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await;
    for (name, arguments) in
        [("doctor", &["doctor"][..]), ("nodes", &["nodes"]), ("explain", &["explain", NODE])]
    {
        let screen = macs.cluster.ctl(arguments).await;
        let text = screen.stdout.replace(&macs.dir.path().display().to_string(), "[DIR]");
        let mut filters = vec![
            // Where this runs, and as whom.
            (r"x86_64|aarch64", "[ARCH]"),
            (r"(?m)^  (warn|FAIL)  (Workers run as root|.* are free where the agent keeps).*\n.*\n", ""),
            (r"\bworker-user, |\bdisk, ", ""),
            (r"\A.*\d+ things? (will|may) .*", "[HOW MANY THINGS]"),
            // When.
            (r"(\d+ (ms|s|min)|moments?) ago|just now", "[TIME] ago"),
            (r"(connected|hold) for \d+ (ms|s|min)", "$1 for [TIME]"),
        ];
        if name == "nodes" {
            // The width of a column follows from what is in it.
            filters.push((r"   +", "  "));
        }
        insta::with_settings!({ filters => filters, omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!(format!("{state}_{name}"), text);
        });
    }
    macs.cluster.finish().await;
}
