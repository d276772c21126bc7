use proptest::prelude::*;

use super::*;
use crate::refresh::grant::NeedsReason;

/// One random operation on one of a few grants.
#[derive(Clone, Debug)]
enum Op {
    Import { replace: bool, standing: Standing },
    Begin,
    Commit { late: bool, standing: Standing },
    Fail { fate_unknown: bool, verdict: bool },
    Standing(Standing),
    Delete,
}

fn op() -> impl Strategy<Value = (usize, Op)> {
    let standing = || prop::sample::select(Standing::ALL.to_vec());
    let op = prop_oneof![
        3 => (any::<bool>(), standing()).prop_map(|(replace, standing)| Op::Import { replace, standing }),
        2 => Just(Op::Begin),
        3 => (any::<bool>(), standing()).prop_map(|(late, standing)| Op::Commit { late, standing }),
        2 => (any::<bool>(), any::<bool>())
            .prop_map(|(fate_unknown, verdict)| Op::Fail { fate_unknown, verdict }),
        2 => standing().prop_map(Op::Standing),
        1 => Just(Op::Delete),
    ];
    (0..3usize, op)
}

const USERS: [&str; 3] = ["anna", "bert", "carl"];

async fn run(ops: Vec<(usize, Op)>) {
    let bench = Bench::new();
    let store = &bench.store;
    // What the reference knows of each user's grant.
    let mut model: [Option<Grant>; 3] = [None, None, None];
    for (nth, (user, op)) in ops.into_iter().enumerate() {
        let name = format!("t{nth}");
        let known = model[user].clone();
        let now = match (op, &known) {
            (Op::Import { replace, standing }, known) => {
                let import = Import {
                    replace,
                    standing,
                    ..replacing(USERS[user], &name)
                };
                match (store.import(import).await.unwrap(), known) {
                    (Imported::Created(grant), None) => Some(grant),
                    (Imported::Replaced(grant), Some(_)) if replace => Some(grant),
                    (Imported::Exists(grant), Some(_)) if !replace => Some(grant),
                    (other, known) => panic!("{other:?} after {known:?}"),
                }
            }
            (_, None) => None,
            (Op::Begin, Some(grant)) => {
                let now = applied(
                    store
                        .begin_attempt(grant.id, grant.generation, None, at(1))
                        .await,
                );
                let presented = grant.mark.map_or(0, |mark| mark.presented);
                assert_eq!(now.mark.unwrap().presented, presented + 1);
                Some(now)
            }
            (Op::Commit { late, standing }, Some(grant)) => {
                let mut set = commit(grant, &name);
                set.standing = standing;
                set.presented_generation -= u64::from(late);
                match store.commit_tokens(set).await.unwrap() {
                    Cas::Lost if late => Some(grant.clone()),
                    Cas::Applied(now) if !late && now.mark.is_none() => {
                        assert_eq!(now.generation, grant.generation + 1);
                        Some(now)
                    }
                    other => panic!("{other:?}"),
                }
            }
            (
                Op::Fail {
                    fate_unknown,
                    verdict,
                },
                Some(grant),
            ) => {
                let needs_authorization = verdict.then_some(NeedsReason::RevokedOrUsedElsewhere);
                let failure = Failure {
                    fate_unknown,
                    needs_authorization,
                    ..failure("x")
                };
                Some(applied(
                    store
                        .record_failure(grant.id, grant.generation, failure)
                        .await,
                ))
            }
            (Op::Standing(standing), Some(grant)) => store
                .set_standing(grant.id, standing, None, By::Admin, at(2))
                .await
                .unwrap(),
            (Op::Delete, Some(_)) => {
                store
                    .delete(&key(USERS[user]), at(3), true)
                    .await
                    .unwrap()
                    .unwrap();
                None
            }
        };
        if let (Some(before), Some(now)) = (&known, &now) {
            assert!(now.generation >= before.generation, "I3");
            assert!(now.version >= before.version);
        }
        assert_eq!(store.grant(&key(USERS[user])).await.unwrap(), now);
        model[user] = now;
    }
    let mut recount = BTreeMap::new();
    for grant in model.into_iter().flatten() {
        *recount
            .entry((grant.standing.name(), grant.standing.reason()))
            .or_insert(0) += 1;
    }
    let counted = store.counts().await.unwrap();
    let counted: BTreeMap<_, _> = counted
        .iter()
        .map(|c| ((c.standing.name(), c.standing.reason()), c.grants))
        .collect();
    assert_eq!(counted, recount);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn counters_equal_a_recount_and_generations_never_go_back(
        ops in prop::collection::vec(op(), 0..40)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(run(ops));
    }
}
