//! Installation against interpreters that are shell scripts: every way it can go wrong, without a network.

use std::{sync::Arc, time::Instant};

use super::*;
use crate::runtime::python::tests::fake;

/// The runtime's python that a fake `-m venv` puts in place: answers the check, and plays pip by `PIP`.
const INNER: &str = r#"
case "$*" in
  *"-m pip"*) PIP ;;
  *"import mlx"*) echo '{"python_version":"3.12.1","mlx_version":"0.32.4","mlx_lm_version":"0.32.2"}' ;;
  *) echo 3.12.1 ;;
esac"#;

/// An interpreter whose `-m venv DIR` makes `DIR/bin/python` from [`INNER`], and counts how often it did.
fn python(dir: &Path, venv: &str, pip: &str) -> PathBuf {
    let inner = fake(dir, "inner", &INNER.replace("PIP", pip));
    let script = format!(
        r#"case "$*" in
  *"-m venv"*) echo made >> {count}; {venv}; for last; do :; done; mkdir -p "$last/bin"; cp {inner} "$last/bin/python" ;;
  *) echo 3.12.1; echo venv ;;
esac"#,
        count = dir.join("count").display(),
        inner = inner.display()
    );
    fake(dir, "python", &script)
}

fn times_made(dir: &Path) -> usize {
    fs::read_to_string(dir.join("count")).unwrap_or_default().lines().count()
}

async fn install_into(dir: &Path, python: &Path) -> (Result<Outcome, Error>, Vec<String>) {
    let mut told = Vec::new();
    let outcome = install(&dir.join("runtime"), Some(python), &mut |words| told.push(words.to_owned())).await;
    (outcome, told)
}

#[tokio::test]
async fn a_second_installation_finds_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let python = python(dir.path(), ":", "echo 'Collecting mlx==0.32.4'; echo 'Collecting numpy==2.4.6'");
    let (first, told) = install_into(dir.path(), &python).await;
    assert!(matches!(first, Ok(Outcome::Installed(ref status)) if status.ready), "{first:?}");
    assert!(told.iter().any(|line| line.ends_with("mlx 0.32.4")), "{told:?}");
    let (second, _) = install_into(dir.path(), &python).await;
    assert!(matches!(second, Ok(Outcome::AlreadyReady(_))), "{second:?}");
    assert_eq!(times_made(dir.path()), 1);
}

#[tokio::test]
async fn two_at_once_make_it_once() {
    let dir = tempfile::tempdir().unwrap();
    let python = python(dir.path(), "sleep 0.2", ":");
    let (one, two) = tokio::join!(install_into(dir.path(), &python), install_into(dir.path(), &python));
    let (one, two) = (one.0.unwrap(), two.0.unwrap());
    assert_ne!(matches!(one, Outcome::Installed(_)), matches!(two, Outcome::Installed(_)));
    assert_eq!(times_made(dir.path()), 1);
}

#[tokio::test]
async fn pips_last_words_are_shown_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let python =
        python(dir.path(), ":", "echo 'ERROR: No matching distribution found for mlx==0.32.4' >&2; exit 1");
    let (failed, _) = install_into(dir.path(), &python).await;
    let error = failed.unwrap_err().to_string();
    assert!(error.starts_with("pip install failed (exit status: 1)"), "{error}");
    assert!(error.contains("\n  ERROR: No matching distribution found for mlx==0.32.4"), "{error}");
    assert!(!dir.path().join("runtime").exists());
}

#[tokio::test]
async fn what_was_broken_off_is_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = dir.path().join("runtime");
    marker::begin(&runtime).unwrap();
    fs::write(runtime.join("half"), "").unwrap();
    let python = python(dir.path(), ":", ":");
    let (outcome, told) = install_into(dir.path(), &python).await;
    assert!(matches!(outcome, Ok(Outcome::Installed(_))), "{outcome:?}");
    assert!(told[0].contains("broken off"), "{told:?}");
    assert!(!runtime.join("half").exists());
}

#[tokio::test]
async fn another_requirements_hash_makes_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let python = python(dir.path(), ":", ":");
    install_into(dir.path(), &python).await.0.unwrap();
    let runtime = dir.path().join("runtime");
    let Kind::Ready(found) = marker::kind(&runtime).unwrap() else { panic!("not ready") };
    marker::begin(&runtime).unwrap();
    marker::finish(&runtime, &Marker { requirements_hash: "old".into(), ..found }).unwrap();
    assert!(!check::glance(&runtime, None).await.ready);
    let (outcome, _) = install_into(dir.path(), &python).await;
    assert!(matches!(outcome, Ok(Outcome::Installed(_))), "{outcome:?}");
    assert!(check::glance(&runtime, None).await.ready);
}

#[tokio::test]
async fn a_strangers_directory_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = dir.path().join("runtime");
    fs::create_dir(&runtime).unwrap();
    fs::write(runtime.join("thesis.tex"), "years of work").unwrap();
    let python = python(dir.path(), ":", ":");
    let (failed, _) = install_into(dir.path(), &python).await;
    let error = failed.unwrap_err().to_string();
    assert!(error.contains("holds files that cluster-agent did not put there"), "{error}");
    assert!(runtime.join("thesis.tex").exists());
}

#[tokio::test]
async fn a_venv_without_ensurepip_gets_the_hint() {
    let dir = tempfile::tempdir().unwrap();
    let python = python(
        dir.path(),
        "echo 'The virtual environment was not created successfully because ensurepip is not available.'; exit 1",
        ":",
    );
    let error = install_into(dir.path(), &python).await.0.unwrap_err().to_string();
    assert!(error.contains("`apt install python3.12-venv`"), "{error}");
    assert!(!dir.path().join("runtime").exists());
}

#[tokio::test]
async fn progress_is_told_while_pip_runs_and_not_after() {
    let dir = tempfile::tempdir().unwrap();
    let gate = dir.path().join("gate");
    // pip goes on only once its first line has been told.
    let pip = format!(
        "echo 'Collecting mlx==0.32.4'; n=0; while [ ! -e {0} ] && [ $n -lt 200 ]; do n=$((n+1)); sleep 0.05; done; [ -e {0} ]",
        gate.display()
    );
    let python = python(dir.path(), ":", &pip);
    let runtime = dir.path().join("runtime");
    let gate = Arc::new(gate);
    let began = Instant::now();
    let outcome = install(&runtime, Some(&python), &mut |words| {
        if words.contains("mlx 0.32.4") {
            fs::write(gate.as_ref(), "").unwrap();
        }
    })
    .await;
    assert!(outcome.is_ok(), "{outcome:?} after {:?}", began.elapsed());
}
