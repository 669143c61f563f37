//! The controller's configuration changes while it runs: what can take effect does, and a file that is wrong changes
//! nothing and is told.

use std::fs;

use nightshift_proto::v1::Rejection;
use nightshift_tests::{
    cluster::Cluster,
    control,
    rows::Input,
    suite::{Case, case},
    wait,
};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("reload::a_changed_file_takes_effect_and_a_wrong_one_is_refused", &[], reload),
        case("reload::printed_defaults_are_a_valid_file", &[], printed),
        case("reload::a_second_controller_on_the_same_state_is_refused", &[], second),
        case("reload::an_address_that_is_not_loopback_is_refused", &[], public_address),
    ]
}

const SMALL: &str = "[limits]\nmax_rows = 5\n";
const LARGE: &str = "[limits]\nmax_rows = 1000\n";

async fn submit(cluster: &Cluster, rows: usize) -> Result<(), Rejection> {
    let input = Input::chat(rows, 10, 1);
    let spec = control::spec("limits", "/models/stub");
    cluster.control().try_submit(spec, control::pieces(input.jsonl())).await.map(|_| ())
}

async fn reload() {
    let cluster = Cluster::builder("reload").config(SMALL).expect(&[
            "WARN the configuration file *clusterd.toml is refused: line 2: *; the old settings stay in force \
             kind=\"config-refused\"",
            "WARN the configuration file *clusterd.toml is refused: line 2: unknown field `max_raws`*; the old settings stay in \
             force kind=\"config-refused\"",
        ]).start().await;
    let refusal = submit(&cluster, 6).await.expect_err("six rows are more than five");
    assert!(format!("{refusal:?}").contains('5'), "the limit is named: {refusal:?}");

    fs::write(cluster.config_path(), LARGE).expect("the configuration can be written");
    wait::eventually("the larger limit to hold", wait::SOON, async || {
        submit(&cluster, 6).await.map_err(|refusal| format!("{refusal:?}"))
    })
    .await;

    for (wrong, word) in [("[limits]\nmax_rows = ", "line 2"), ("[limits]\nmax_raws = 5\n", "max_raws")] {
        fs::write(cluster.config_path(), wrong).expect("the configuration can be written");
        let event = wait::eventually("the refusal to be told", wait::SOON, async || {
            let events = cluster.control().events(1000).await;
            let told =
                events.iter().map(|event| format!("{}: {}", event.kind, event.message)).collect::<Vec<_>>();
            events
                .into_iter()
                .find(|event| event.kind == "config-refused" && event.message.contains(word))
                .ok_or_else(|| format!("{told:#?}"))
        })
        .await;
        assert!(event.message.contains("clusterd.toml"), "the file is named: {}", event.message);
        submit(&cluster, 6).await.expect("the old settings stay");
    }

    // Written aside and moved over it, as editors do.
    let aside = cluster.path().join("aside.toml");
    fs::write(&aside, SMALL).expect("a file can be written");
    fs::rename(&aside, cluster.config_path()).expect("a file can be moved");
    wait::eventually("the smaller limit to hold again", wait::SOON, async || {
        match submit(&cluster, 6).await {
            Err(_) => Ok(()),
            Ok(()) => Err("six rows are still accepted".to_owned()),
        }
    })
    .await;
    cluster.finish().await;
}

async fn printed() {
    let cluster = Cluster::builder("printed").start().await;
    let mut command = std::process::Command::new(nightshift_tests::binaries::path("clusterd"));
    let printed = nightshift_tests::process::run({
        command.arg("--print-config");
        command
    })
    .await
    .expect_code(0);
    let file = cluster.path().join("printed.toml");
    fs::write(&file, &printed.stdout).expect("a file can be written");
    let mut again = std::process::Command::new(nightshift_tests::binaries::path("clusterd"));
    again.arg("--config").arg(&file).arg("--print-config");
    let again = nightshift_tests::process::run(again).await.expect_code(0);
    assert_eq!(again.stdout, printed.stdout, "what is printed can be used as it is");
    cluster.finish().await;
}

async fn second() {
    let cluster = Cluster::builder("second").start().await;
    let mut command = std::process::Command::new(nightshift_tests::binaries::path("clusterd"));
    command.arg("--state-dir").arg(cluster.controller_dir()).args(["--listen", "127.0.0.1:0"]);
    let outcome = nightshift_tests::process::run(command).await.expect_code(1);
    let dir = cluster.controller_dir().to_string_lossy().into_owned();
    assert!(outcome.stderr.contains(&dir), "the directory is named: {outcome:#?}");
    cluster.finish().await;
}

async fn public_address() {
    let cluster = Cluster::builder("public").start().await;
    let mut command = std::process::Command::new(nightshift_tests::binaries::path("clusterd"));
    command.arg("--state-dir").arg(cluster.path().join("other")).args(["--listen", "0.0.0.0:0"]);
    let outcome = nightshift_tests::process::run(command).await.expect_code(1);
    assert!(outcome.stderr.contains("loopback"), "{outcome:#?}");
    cluster.finish().await;
}
