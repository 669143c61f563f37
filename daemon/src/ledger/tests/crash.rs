//! Crashes at every step, and crashes while recovering from them.

use proptest::prelude::*;

use super::model::{Action, Model};
use crate::ledger::sim::{Death, Moment, World};

fn commit(rows: &[(usize, u32, bool)]) -> Action {
    Action::Commit(rows.to_vec())
}

/// One of everything, in groups that share syncs.
pub(super) fn script() -> Vec<Vec<Action>> {
    let checkpoint = |row, tokens, with_logprobs| Action::Checkpoint { job: 0, row, tokens, with_logprobs };
    vec![
        vec![Action::CreateJob { rows_total: 12 }],
        vec![checkpoint(3, 10, false), checkpoint(5, 2_500, true), Action::Events(2)],
        vec![commit(&[(0, 0, true), (0, 1, false), (0, 2, true)])],
        vec![Action::PutJob { job: 0, over: false }, commit(&[(0, 3, true), (0, 2, true), (0, 4, true)])],
        vec![
            Action::CreateJob { rows_total: 5 },
            commit(&[(1, 0, true), (0, 5, false)]),
            checkpoint(6, 30, false),
        ],
        vec![
            commit(&[(1, 1, true)]),
            commit(&[(1, 2, false), (0, 7, true)]),
            Action::PutNode { draining: true },
        ],
        vec![checkpoint(6, 60, false), checkpoint(8, 5, true), Action::Flush, Action::Events(4)],
        vec![commit(&[(0, 6, true), (1, 0, false)]), Action::PutJob { job: 1, over: true }],
        vec![
            commit(&[(1, 3, true)]),
            Action::PutModel,
            Action::PutIncident(5_000),
            Action::PutNode { draining: false },
            Action::Events(1),
        ],
    ]
}

/// Runs groups until the end or the crash, restarts as often as told, and checks what is left.
fn run_and_recover(
    world: &World,
    groups: &[Vec<Action>],
    [first_death, later_deaths]: [Death; 2],
    crashes_in_recovery: &[(u64, Moment)],
    clean_end: bool,
) {
    let mut model = Model::new(world);
    if let Ok((mut core, replay)) = model.open() {
        model.check(&replay);
        for group in groups {
            model.run(&mut core, group, false);
            if world.has_crashed() {
                break;
            }
        }
        if clean_end && !world.has_crashed() {
            let _ = core.close();
        }
    }
    world.restart(first_death);
    for (steps, moment) in crashes_in_recovery {
        world.crash_at(world.steps() + steps, *moment);
        let _ = model.open();
        world.restart(later_deaths);
    }
    let (core, replay) = model.open().unwrap();
    model.check(&replay);
    drop(core);
    world.restart(later_deaths);
    let (mut core, replay) = model.open().unwrap();
    assert_eq!(replay.repairs, Vec::<String>::new(), "a second start has nothing left to repair");
    model.check(&replay);
    model.finish_everything(&mut core);
    core.close().unwrap();
    let (_core, replay) = model.open().unwrap();
    model.check(&replay);
}

#[test]
fn nothing_is_lost_wherever_a_crash_comes() {
    let groups = script();
    let world = World::new(1);
    run_and_recover(&world, &groups, [Death::Kill; 2], &[], true);
    let steps = world.steps();
    assert!(steps > 100, "{steps} steps");
    for step in 1..=steps {
        for moment in [Moment::Before, Moment::Midway, Moment::After] {
            let deaths = [Death::Kill, Death::Kill, Death::PowerCut, Death::PowerCut, Death::PowerCut];
            for (seed, deaths) in (1..).zip(deaths.windows(2)) {
                let world = World::new(step * 1000 + seed);
                if seed == 4 {
                    world.tear_batches();
                }
                world.crash_at(step, moment);
                run_and_recover(&world, &groups, [deaths[0], deaths[1]], &[], true);
            }
        }
    }
}

#[test]
fn nothing_is_lost_when_recovery_crashes_too() {
    let groups = script();
    let world = World::new(1);
    run_and_recover(&world, &groups, [Death::Kill; 2], &[], true);
    for step in (1..=world.steps()).step_by(3) {
        for second in 1..=6 {
            let moment = [Moment::Before, Moment::Midway, Moment::After][(step + second) as usize % 3];
            let world = World::new(step * 1000 + second);
            world.crash_at(step, Moment::Midway);
            let again = [(second, moment), (second + 1, Moment::Midway)];
            let first_death = if second % 2 == 0 { Death::Kill } else { Death::PowerCut };
            run_and_recover(&world, &groups, [first_death, Death::PowerCut], &again, true);
        }
    }
}

pub(super) fn action() -> impl Strategy<Value = Action> {
    let row = (0_usize..3, 0_u32..40, prop::bool::weighted(0.8));
    prop_oneof![
        1 => (1_u32..40).prop_map(|rows_total| Action::CreateJob { rows_total }),
        6 => prop::collection::vec(row, 1..12).prop_map(Action::Commit),
        3 => (0_usize..3, 0_u32..40, prop_oneof![0_usize..50, 900_usize..3_000], any::<bool>()).prop_map(
            |(job, row, tokens, with_logprobs)| Action::Checkpoint { job, row, tokens, with_logprobs }
        ),
        1 => (0_usize..3, prop::bool::weighted(0.1)).prop_map(|(job, over)| Action::PutJob { job, over }),
        1 => any::<bool>().prop_map(|draining| Action::PutNode { draining }),
        1 => Just(Action::PutModel),
        1 => prop_oneof![0_usize..100, 3_000_usize..5_000].prop_map(Action::PutIncident),
        1 => (1_usize..4).prop_map(Action::Events),
        1 => Just(Action::Flush),
    ]
}

fn moment() -> impl Strategy<Value = Moment> {
    prop_oneof![Just(Moment::Before), Just(Moment::Midway), Just(Moment::After)]
}

fn death() -> impl Strategy<Value = Death> {
    prop_oneof![Just(Death::Kill), Just(Death::PowerCut)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_in_random_nights(
        seed in any::<u64>(),
        first in 1_u32..40,
        groups in prop::collection::vec(prop::collection::vec(action(), 1..5), 1..25),
        crash in 1_u64..300,
        moment in moment(),
        deaths in [death(), death()],
        tears_batches in prop::bool::weighted(0.3),
        again in prop::collection::vec((1_u64..15, moment()), 0..3),
        clean_end in any::<bool>(),
    ) {
        let world = World::new(seed);
        if tears_batches {
            world.tear_batches();
        }
        world.crash_at(crash, moment);
        let mut groups = groups;
        groups.insert(0, vec![Action::CreateJob { rows_total: first }]);
        run_and_recover(&world, &groups, deaths, &again, clean_end);
    }
}
