use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

const NO_ROUTE: u16 = 312;

fn id(number: usize) -> MessageId {
    format!("m{number}").parse().expect("an id")
}

fn ack(carried: Option<usize>) -> Confirm {
    Confirm { is_ack: true, carried: carried.map(|number| (id(number), NO_ROUTE)), waited_since: Some(0) }
}

/// Settles one and gives the verdicts that this makes, by number.
fn settle(window: &mut Window<usize>, number: usize, confirm: Confirm) -> Vec<(usize, Verdict)> {
    let mut verdicts = Vec::new();
    assert!(window.settle(&id(number), confirm, &mut |number, verdict| verdicts.push((number, verdict))));
    verdicts
}

fn window(messages: usize) -> Window<usize> {
    let mut window = Window::new();
    (0..messages).for_each(|number| window.publish(id(number), number));
    window
}

#[test]
fn a_confirm_that_carries_another_s_return_is_not_trusted() {
    let mut window = window(3);
    assert_eq!(settle(&mut window, 0, ack(Some(1))), []);
    assert_eq!(settle(&mut window, 1, ack(None)), [(1, Verdict::Returned(NO_ROUTE)), (0, Verdict::Confirmed)]);
    assert_eq!(window.len(), 1);
    assert_eq!(settle(&mut window, 2, ack(None)), [(2, Verdict::Confirmed)]);
}

#[test]
fn a_return_that_comes_late_finds_whom_it_is_about() {
    let mut window = window(3);
    assert_eq!(settle(&mut window, 0, ack(Some(2))), []);
    assert_eq!(settle(&mut window, 1, ack(Some(0))), [(0, Verdict::Returned(NO_ROUTE))]);
    assert_eq!(settle(&mut window, 2, ack(None)), [(2, Verdict::Returned(NO_ROUTE)), (1, Verdict::Confirmed)]);
}

#[test]
fn what_is_out_of_order_proves_nothing() {
    let mut window = window(3);
    let late = Confirm { waited_since: None, ..ack(None) };
    assert_eq!(settle(&mut window, 0, late.clone()), []);
    assert_eq!(settle(&mut window, 1, ack(Some(0))), [(0, Verdict::Returned(NO_ROUTE))]);
    assert_eq!(settle(&mut window, 2, late), [(1, Verdict::Confirmed), (2, Verdict::Confirmed)]);
}

#[test]
fn what_was_waited_for_too_late_is_judged_by_what_came_after() {
    let mut window = window(4);
    let late = Confirm { waited_since: None, ..ack(None) };
    let since = |clock| Confirm { waited_since: Some(clock), ..ack(None) };
    assert_eq!(settle(&mut window, 0, late), []);
    assert_eq!(settle(&mut window, 1, since(0)), [(1, Verdict::Confirmed)]);
    assert_eq!(settle(&mut window, 2, since(1)), [(0, Verdict::Confirmed), (2, Verdict::Confirmed)]);
    assert_eq!(window.len(), 1);
}

#[test]
fn a_nack_is_one_even_if_it_carries_something() {
    let mut window = window(2);
    let nack = Confirm { is_ack: false, ..ack(Some(1)) };
    assert_eq!(settle(&mut window, 0, nack), [(0, Verdict::Nacked)]);
    assert_eq!(settle(&mut window, 1, ack(None)), [(1, Verdict::Returned(NO_ROUTE))]);
}

#[test]
fn nothing_is_confirmed_on_a_broken_channel_but_what_was_before() {
    let mut window = window(4);
    assert_eq!(settle(&mut window, 0, ack(None)), [(0, Verdict::Confirmed)]);
    assert_eq!(settle(&mut window, 1, ack(Some(3))), []);
    assert_eq!(window.fail(&id(2)), Some(2));
    assert_eq!(settle(&mut window, 3, ack(None)), [(3, Verdict::Returned(NO_ROUTE))]);
    assert_eq!(window.into_tickets().collect::<Vec<_>>(), [1]);
}

#[test]
fn what_was_not_published_after_all_proves_nothing_and_is_not_waited_for() {
    let (mut window, late) = (window(3), Confirm { waited_since: None, ..ack(None) });
    let mut confirmed = Vec::new();
    let mut decide = |number, verdict| confirmed.push((number, verdict));
    assert!(window.settle(&id(0), late, &mut decide));
    assert_eq!(window.withdraw(&id(1), &mut decide), Some(1));
    assert_eq!(window.pending(), 1);
    assert_eq!(window.withdraw(&id(2), &mut decide), Some(2));
    assert_eq!((window.len(), confirmed), (0, vec![(0, Verdict::Confirmed)]));
}

#[test]
fn a_return_of_a_stranger_is_noticed() {
    let mut window = window(1);
    assert!(!window.settle(&id(0), ack(Some(7)), &mut |_, _| {}));
}

/// One publish of the model.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    /// lapin does not know yet whether it is written.
    Sending,
    /// Written: the confirm may settle, and nobody waits for it yet.
    Sent,
    /// The confirm is waited for.
    Waiting,
    Settled,
}

/// lapin's channel, a broker and the task that waits, one step at a time: as in `lane`, a task is told of a publish when
/// it was written and when its confirm settles, in this order, by one queue.
struct Model {
    unroutable: Vec<bool>,
    stage: Vec<Stage>,
    returns_to_come: VecDeque<usize>,
    is_returned: Vec<bool>,
    /// What lapin keeps until a confirm takes it along.
    kept: VecDeque<usize>,
    settled: Vec<Option<Option<usize>>>,
    woken: VecDeque<usize>,
    waited_since: Vec<Option<u64>>,
    window: Window<usize>,
    verdicts: Vec<Option<Verdict>>,
}

impl Model {
    fn new(unroutable: Vec<bool>) -> Self {
        let count = unroutable.len();
        Self {
            stage: vec![Stage::Sending; count],
            returns_to_come: (0..count).filter(|number| unroutable[*number]).collect(),
            is_returned: vec![false; count],
            kept: VecDeque::new(),
            settled: vec![None; count],
            woken: VecDeque::new(),
            waited_since: vec![None; count],
            window: window(count),
            verdicts: vec![None; count],
            unroutable,
        }
    }

    /// The next publish is written.
    fn write(&mut self) {
        if let Some(number) = self.stage.iter().position(|stage| *stage == Stage::Sending) {
            self.stage[number] = Stage::Sent;
            self.woken.push_back(number);
        }
    }

    /// The broker returns the next message that no queue takes.
    fn bounce(&mut self) {
        if let Some(&number) = self.returns_to_come.front()
            && self.stage[number] != Stage::Sending
        {
            self.returns_to_come.pop_front();
            self.is_returned[number] = true;
            self.kept.push_back(number);
        }
    }

    /// The broker confirms one of those that it may.
    fn confirm(&mut self, choice: usize) {
        let ready: Vec<usize> = (0..self.stage.len())
            .filter(|number| matches!(self.stage[*number], Stage::Sent | Stage::Waiting))
            .filter(|number| self.settled[*number].is_none())
            .filter(|number| !self.unroutable[*number] || self.is_returned[*number])
            .collect();
        if let Some(&number) = ready.get(choice % ready.len().max(1)) {
            self.settled[number] = Some(self.kept.pop_front());
            if self.stage[number] == Stage::Waiting {
                self.woken.push_back(number);
            }
        }
    }

    /// The task looks at whom it was told of next.
    fn poll(&mut self) {
        let Some(number) = self.woken.pop_front() else { return };
        self.stage[number] = match self.settled[number] {
            None => {
                self.waited_since[number] = Some(self.window.clock().now());
                Stage::Waiting
            }
            Some(carried) => {
                let confirm = Confirm { waited_since: self.waited_since[number], ..ack(carried) };
                for (number, verdict) in settle(&mut self.window, number, confirm) {
                    assert_eq!(self.verdicts[number].replace(verdict), None, "{number} is judged twice");
                }
                Stage::Settled
            }
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn no_message_is_misjudged(
        unroutable in prop::collection::vec(prop::bool::weighted(0.34), 1..24),
        steps in prop::collection::vec((0_u8..4, 0_usize..24), 0..200),
    ) {
        let mut model = Model::new(unroutable);
        let drain = std::iter::repeat_n([0, 1, 2, 3], 2 * model.stage.len() + 1).flatten().map(|kind| (kind, 0));
        for (kind, choice) in steps.into_iter().chain(drain) {
            match kind {
                0 => model.write(),
                1 => model.bounce(),
                2 => model.confirm(choice),
                _ => model.poll(),
            }
        }
        for (number, unroutable) in model.unroutable.iter().enumerate() {
            let expected = if *unroutable { Verdict::Returned(NO_ROUTE) } else { Verdict::Confirmed };
            prop_assert_eq!(model.verdicts[number], Some(expected), "{}", number);
        }
    }
}
