//! The one file in timely's terms: an operator that waits until the frontier has passed an epoch, then takes it whole.
//!
//! A [`Node`] is pure logic. `node` puts it into a dataflow: it stashes what arrives by epoch, and when all of its
//! inputs' frontiers have passed an epoch, hands it over, in ascending order, mixed in with what depends on epoch time
//! alone: the cuts of checkpoints, and the whole seconds at which a deadline is due. So whatever a node does is a
//! function of the epochs' contents, and never of the order in which messages arrived.

use crate::Epoch;
use std::any::TypeId;
use std::collections::BTreeMap;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::ParallelizationContract;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, StreamVec};
use timely::progress::frontier::MutableAntichain;

/// What a node is told, in ascending order of epochs. At one number the order is: `Cut`, `Second`, `Epoch`.
pub enum Step<A, B, C> {
    /// Save now: every epoch below the cut has been taken, none at or above it.
    Cut(Epoch),
    /// A whole second of epoch time that the node said is due; every epoch below it has been taken.
    Second(Epoch),
    /// An epoch, complete.
    Epoch(Epoch, Arrived<A, B, C>),
    /// Every epoch below this one is complete.
    Passed(Epoch),
    /// Every epoch is complete. Nothing follows.
    End,
}

/// What has arrived for one epoch, by input, in containers as they came: those of one sender in its order.
pub struct Arrived<A, B, C> {
    /// From the first input.
    pub first: Vec<Vec<A>>,
    /// From the second input.
    pub second: Vec<B>,
    /// From the third input.
    pub third: Vec<C>,
}

/// What a node hands on, at the epoch of the step in which it does so.
pub struct Out<X, Y, Z> {
    /// To the first output.
    pub first: Vec<X>,
    /// To the second output.
    pub second: Vec<Y>,
    /// To the third output.
    pub third: Vec<Z>,
}

/// A node's logic.
pub trait Node: 'static {
    /// The items of its inputs and outputs; `()` where it has none: such an output says nothing of what is complete.
    type A: Clone + 'static;
    /// See `A`.
    type B: Clone + 'static;
    /// See `A`.
    type C: Clone + 'static;
    /// See `A`.
    type X: Clone + 'static;
    /// See `A`.
    type Y: Clone + 'static;
    /// See `A`.
    type Z: Clone + 'static;

    /// Begins, at epoch 0, before anything else.
    fn begin(&mut self, _out: &mut Out<Self::X, Self::Y, Self::Z>) {}
    /// Sees a container of the first input when it arrives, before its epoch is complete.
    fn arrive(&mut self, _items: &mut Vec<Self::A>) {}
    /// The next whole second at which something is due, if epoch time goes on as it does now.
    fn due(&self) -> Option<Epoch> {
        None
    }
    /// Goes on with what a cut has left to do, when epochs are complete; says whether something is left. What is left when
    /// the next cut comes is done at once, and at the last cut nothing may be.
    fn go_on(&mut self) -> bool {
        false
    }
    /// Does what the step says.
    fn step(&mut self, step: Step<Self::A, Self::B, Self::C>, out: &mut Out<Self::X, Self::Y, Self::Z>);
}

/// When checkpoints are cut: at the newest multiple of `interval` that the frontier has reached, above `after`.
#[derive(Clone, Copy, Debug)]
pub struct Cuts {
    /// Milliseconds of epoch time; 0 for never. Otherwise there is a last cut, `Epoch::MAX`, when the inputs have ended.
    pub interval: Epoch,
    /// No cut at or below this epoch: replay ends here.
    pub after: Epoch,
}

impl Cuts {
    /// The cut to make now that every epoch below `frontier` is complete, if there is one.
    pub fn reached(&mut self, frontier: Epoch) -> Option<Epoch> {
        let cut = frontier.checked_div(self.interval)? * self.interval;
        (cut > self.after).then(|| {
            self.after = cut;
            cut
        })
    }
}

type Stream<'s, T> = StreamVec<'s, Epoch, T>;
type Input<'s, T, P> = (Stream<'s, T>, P);
type Inputs<'s, N, P, Q, R> =
    (Input<'s, <N as Node>::A, P>, Input<'s, <N as Node>::B, Q>, Input<'s, <N as Node>::C, R>);
/// By output.
type Held = Vec<Option<Capability<Epoch>>>;
type Stash<N> = BTreeMap<Epoch, Arrived<<N as Node>::A, <N as Node>::B, <N as Node>::C>>;
type Outputs<'s, N> = (Stream<'s, <N as Node>::X>, Stream<'s, <N as Node>::Y>, Stream<'s, <N as Node>::Z>);

/// Puts a node into a dataflow. An input comes with the way in which its items find their worker.
pub fn node<'s, N, P, Q, R>(
    scope: Scope<'s, Epoch>,
    name: &str,
    inputs: Inputs<'s, N, P, Q, R>,
    mut cuts: Cuts,
    mut logic: N,
) -> Outputs<'s, N>
where
    N: Node,
    P: ParallelizationContract<Epoch, Vec<N::A>>,
    Q: ParallelizationContract<Epoch, Vec<N::B>>,
    R: ParallelizationContract<Epoch, Vec<N::C>>,
{
    let mut builder = OperatorBuilder::new(name.to_owned(), scope);
    let ((a, p), (b, q), (c, r)) = inputs;
    let mut first = builder.new_input(a, p);
    let mut second = builder.new_input(b, q);
    let mut third = builder.new_input(c, r);
    let (x, xs) = builder.new_output();
    let (y, ys) = builder.new_output();
    let (z, zs) = builder.new_output();
    builder.build(move |capabilities| {
        // An output that carries nothing holds nothing: at each step every worker would be told of it.
        let carries = [carries::<N::X>(), carries::<N::Y>(), carries::<N::Z>()];
        let held = capabilities.into_iter().zip(carries).map(|(capability, carries)| carries.then_some(capability));
        let mut held: Option<Held> = Some(held.collect());
        // What is held lies here.
        let mut passed = 0;
        let mut x = OutputBuilder::<_, CapacityContainerBuilder<Vec<N::X>>>::from(x);
        let mut y = OutputBuilder::<_, CapacityContainerBuilder<Vec<N::Y>>>::from(y);
        let mut z = OutputBuilder::<_, CapacityContainerBuilder<Vec<N::Z>>>::from(z);
        let mut stash: Stash<N> = BTreeMap::new();
        let mut newest = 0;
        let mut out = Out { first: Vec::new(), second: Vec::new(), third: Vec::new() };
        let mut begun = false;
        move |frontiers| {
            let Some(capabilities) = held.as_mut() else { return };
            // The time of a message is at least the frontier, and we hold a capability at the frontier: none is kept per epoch.
            first.for_each(|cap, items| {
                if let Some(&epoch) = cap.least() {
                    logic.arrive(items);
                    arrived(&mut stash, epoch).first.push(std::mem::take(items));
                }
            });
            second.for_each(|cap, items| {
                if let Some(&epoch) = cap.least() {
                    arrived(&mut stash, epoch).second.append(items);
                }
            });
            third.for_each(|cap, items| {
                if let Some(&epoch) = cap.least() {
                    arrived(&mut stash, epoch).third.append(items);
                }
            });
            let frontier = complete_below(frontiers);
            let mut send = |epoch: Epoch, out: &mut Out<N::X, N::Y, N::Z>, capabilities: &Held| {
                send(&mut x, capabilities[0].as_ref(), epoch, &mut out.first);
                send(&mut y, capabilities[1].as_ref(), epoch, &mut out.second);
                send(&mut z, capabilities[2].as_ref(), epoch, &mut out.third);
            };
            if !std::mem::replace(&mut begun, true) {
                logic.begin(&mut out);
                send(0, &mut out, capabilities);
            }
            let mut cut = frontier.and_then(|f| cuts.reached(f));
            loop {
                let next = stash.first_key_value().map(|(e, _)| *e).filter(|e| frontier.is_none_or(|f| *e < f));
                // At the end only what was reached is looked at: no time passes after the last epoch.
                let second = logic.due().filter(|s| *s <= frontier.unwrap_or(newest.max(next.unwrap_or(0))));
                let step = [cut, second, next].into_iter().flatten().min();
                match step {
                    Some(at) if cut == Some(at) => {
                        cut = None;
                        logic.step(Step::Cut(at), &mut out);
                    }
                    Some(at) if second == Some(at) => {
                        logic.step(Step::Second(at), &mut out);
                        send(at, &mut out, capabilities);
                    }
                    Some(at) => {
                        let Some((_, items)) = stash.pop_first() else { break };
                        newest = at;
                        logic.step(Step::Epoch(at, items), &mut out);
                        send(at, &mut out, capabilities);
                    }
                    None => break,
                }
            }
            match frontier {
                Some(frontier) => {
                    if passed < frontier {
                        logic.go_on();
                        logic.step(Step::Passed(frontier), &mut out);
                        let before = frontier - 1;
                        send(before.max(passed), &mut out, capabilities);
                        newest = newest.max(frontier);
                        passed = frontier;
                        capabilities.iter_mut().flatten().for_each(|c| c.downgrade(&frontier));
                    }
                }
                None => {
                    if cuts.interval > 0 {
                        logic.step(Step::Cut(Epoch::MAX), &mut out);
                    }
                    logic.step(Step::End, &mut out);
                    let last = newest.max(passed);
                    send(last, &mut out, capabilities);
                    held = None;
                }
            }
        }
    });
    (xs, ys, zs)
}

fn arrived<A, B, C>(stash: &mut BTreeMap<Epoch, Arrived<A, B, C>>, epoch: Epoch) -> &mut Arrived<A, B, C> {
    stash.entry(epoch).or_insert_with(|| Arrived { first: Vec::new(), second: Vec::new(), third: Vec::new() })
}

/// Every epoch below this one is complete; none where the inputs have ended.
fn complete_below(frontiers: &[MutableAntichain<Epoch>]) -> Option<Epoch> {
    frontiers.iter().filter_map(|f| f.frontier().first().copied()).min()
}

/// Whether an output or input of this type has items.
fn carries<T: 'static>() -> bool {
    TypeId::of::<T>() != TypeId::of::<()>()
}

fn send<T: Clone + 'static>(
    output: &mut OutputBuilder<Epoch, CapacityContainerBuilder<Vec<T>>>,
    capability: Option<&Capability<Epoch>>,
    epoch: Epoch,
    items: &mut Vec<T>,
) {
    if let Some(capability) = capability
        && !items.is_empty()
    {
        let capability = capability.delayed(&epoch);
        output.activate().session(&capability).give_container(items);
        items.clear();
    }
}
