"""Bytes between devices against numbers known by hand: compiled programs, and text of a TPU's."""

import textwrap

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rlhf_jax.runtime import collectives
from rlhf_jax.runtime.flops import Incomplete

LAYERS, WIDTH, ROWS = 5, 32, 16
pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason='wants more devices')


def compiled(program, *shapes, specs):
  """Optimized text of a program on eight devices, its arguments split as `specs` say."""
  mesh = jax.make_mesh((8,), ('fsdp',), (AxisType.Auto,))
  given = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
           for shape, spec in zip(shapes, specs, strict=True)]
  with jax.set_mesh(mesh):
    return jax.jit(program).lower(*given).compile().as_text()


def gathered(times):
  """A stack of layers whose weights lie on fsdp and are gathered for each layer, `times` over."""
  whole = lambda w: jax.lax.with_sharding_constraint(w, PartitionSpec())

  def once(x, _):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ whole(w)), None), x, weights_of[0])[0], None

  weights_of = [None]

  def program(weights, x):
    weights_of[0] = weights
    with jax.named_scope('training'):
      return jax.lax.scan(once, x, None, length=times)[0]

  return compiled(program, (LAYERS, WIDTH, WIDTH), (ROWS, WIDTH),
                  specs=(PartitionSpec(None, 'fsdp'), PartitionSpec('fsdp')))


@pytest.mark.parametrize('times', [1, 3])
def test_weights_gathered_in_a_loop_in_a_loop(times):
  moved = collectives.count(gathered(times), 'other')
  # Seven eighths of every layer come from the others, every time.
  assert moved.phases == {'training': {'all-gather': times * LAYERS * WIDTH**2 * 4 * 7 / 8}}


def test_a_sum_over_devices():
  text = compiled(lambda x: jnp.sum(x * x), (ROWS, WIDTH), specs=(PartitionSpec('fsdp'),))
  assert collectives.count(text).phases == {'training': {'all-reduce': 2 * 4 * 7 / 8}}


# ---------------------------------------------------------------- text as TPUs write it

LOOP = '''\
HloModule jit_one, entry_computation_layout={()->f32[8]}

%body (p.0: (s32[], f32[8], s32[])) -> (s32[], f32[8], s32[]) {
  %p.0 = (s32[]{:T(128)}, f32[8]{0:T(8)}, s32[]{:T(128)}) parameter(0)
  %i.0 = s32[]{:T(128)} get-tuple-element(%p.0), index=0
  %x.0 = f32[8]{0:T(8)} get-tuple-element(%p.0), index=1
  %n.0 = s32[]{:T(128)} get-tuple-element(%p.0), index=2
  BODY
  %one.0 = s32[]{:T(128)} constant(1)
  %c.0 = s32[]{:T(128)} copy(%i.0)
  %i.1 = s32[]{:T(128)} add(%c.0, %one.0)
  ROOT %t.0 = (s32[]{:T(128)}, f32[8]{0:T(8)}, s32[]{:T(128)}) tuple(%i.1, %x.0, %n.0)
}

%condition (p.1: (s32[], f32[8], s32[])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, f32[8]{0:T(8)}, s32[]{:T(128)}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %n.1 = s32[]{:T(128)} LIMIT
  ROOT %lt.0 = pred[]{:T(512)} compare(%i.2, %n.1), direction=LT
}

ENTRY %main (x.1: f32[8], n.3: s32[]) -> f32[8] {
  %x.1 = f32[8]{0:T(8)} parameter(0)
  %n.3 = s32[]{:T(128)} parameter(1)
  %zero.0 = s32[]{:T(128)} constant(START)
  %limit.0 = s32[]{:T(128)} OUTSIDE
  %z.0 = s32[]{:T(128)} copy(%zero.0)
  %t.1 = (s32[]{:T(128)}, f32[8]{0:T(8)}, s32[]{:T(128)}) tuple(%z.0, %x.1, %limit.0)
  %w.0 = (s32[]{:T(128)}, f32[8]{0:T(8)}, s32[]{:T(128)}) while(%t.1), NAMED
  ROOT %r.0 = f32[8]{0:T(8)} get-tuple-element(%w.0), index=1
}
'''
PERMUTE = ('%cp.0 = (f32[8]{0:T(8)}, f32[8]{0:T(8)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) '
           'collective-permute-start(%x.0), channel_id=1, source_target_pairs={{0,1},{1,0}}')


def module(body=PERMUTE, limit='constant(9)', start=0, outside='constant(9)', more=''):
  named = 'condition=%condition, body=%body, metadata={op_name="jit(one)/rollout/while"}'
  text = LOOP.replace('NAMED', named).replace('BODY', body).replace('LIMIT', limit)
  text = text.replace('START', str(start)).replace('OUTSIDE', outside)
  return text + textwrap.dedent(more)


@pytest.mark.parametrize(('changes', 'trips'), [
  ({}, 9), ({'start': 2}, 7), ({'limit': 'get-tuple-element(%p.1), index=2'}, 9)])
def test_a_loop_counted_by_its_condition(changes, trips):
  """The limit stands in the condition, or comes in from outside and is only passed on."""
  moved = collectives.count(module(**changes))
  assert moved.phases == {'rollout': {'collective-permute': trips * 8 * 4}}  # by the loop's name


@pytest.mark.parametrize('changes', [
  {'limit': 'get-tuple-element(%p.1), index=2', 'outside': 'add(%n.3, %n.3)'},
  {'limit': 'get-tuple-element(%p.1), index=0'}])
def test_a_loop_that_cannot_be_counted_is_refused(changes):
  with pytest.raises(Incomplete, match=r'w\.0'):
    collectives.count(module(**changes))


def test_a_loop_without_collectives_need_not_be_counted():
  text = module(body='', limit='get-tuple-element(%p.1), index=0')
  assert collectives.count(text).total == 0


@pytest.mark.parametrize('instruction', [
  '%ra.0 = f32[8]{0} ragged-all-to-all(%x.0), replica_groups={{0,1}}',
  '%ag.0 = f32[8]{0} all-gather(%x.0), replica_groups=new[2]{0}, dimensions={0}',
  '%ag.0 = f3[8]{0} all-gather(%x.0), replica_groups={{0,1}}, dimensions={0}'])
def test_what_is_not_understood_is_refused(instruction):
  with pytest.raises(Incomplete):
    collectives.count(module(body=instruction))


def test_a_collective_that_the_walk_does_not_meet_is_refused():
  lost = '''
    %lost (p.9: f32[8]) -> f32[8] {
      %p.9 = f32[8]{0} parameter(0)
      ROOT %ar.9 = f32[8]{0} all-reduce(%p.9), replica_groups={{0,1}}, to_apply=%add
    }
    '''
  with pytest.raises(Incomplete, match='lost'):
    collectives.count(module(more=lost))


@pytest.mark.parametrize(('groups', 'size'), [
  ('{{0,1,2,3},{4,5,6,7}}', 4), ('[2,4]<=[8]', 4), ('[4,2]<=[2,2,2]T(2,1,0)', 2),
  ("mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", 4), ("mesh['axis_0'=4] {'axis_0':(1)2}", 2),
  ("mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_0','axis_1'}", 8)])
def test_how_many_devices_take_part(groups, size):
  body = f'%ag.0 = bf16[16]{{0}} all-gather(%x.0), replica_groups={groups}, dimensions={{0}}'
  moved = collectives.count(module(body=body))
  assert moved.of('rollout') == pytest.approx(9 * 16 * 2 * (size - 1) / size)


@pytest.mark.parametrize(('body', 'kind', 'size'), [
  ('%rs.0 = f32[2]{0} reduce-scatter(%x.0), replica_groups={{0,1,2,3}}', 'reduce-scatter', 8 * 3),
  ('%ar.0 = (f32[2]{0}, bf16[4]{0}) all-reduce(%x.0, %x.0), replica_groups={{0,1,2,3}}',
   'all-reduce', 2 * 16 * 3 / 4),
  ('%aa.0 = f32[8]{0} all-to-all(%x.0), replica_groups={{0,1,2,3}}', 'all-to-all', 32 * 3 / 4),
  ('%as.0 = (f32[2]{0}, f32[8]{0}) all-gather-start(%x.0), replica_groups={{0,1,2,3}}',
   'all-gather', 32 * 3 / 4),
  ('%as.0 = ((f32[2]{0}, bf16[4]{0}), (f32[8]{0}, bf16[16]{0})) all-gather-start(%x.0, %x.0), '
   'replica_groups={{0,1,2,3}}', 'all-gather', 64 * 3 / 4)])
def test_prices(body, kind, size):
  assert collectives.count(module(body=body)).phases == {'rollout': {kind: pytest.approx(9 * size)}}


def fused(name, starts):
  """A fusion with a part of an asynchronous all-gather of one chain and channel."""
  start = ('ROOT %s.NAME = (f32[2]{0}, f32[8]{0}) custom-call(%g.NAME), '
           'custom_call_target="AsyncCollectiveStart"' if starts else '')
  return '''
    %NAME (p.NAME: f32[2]) -> f32[8] {
      %p.NAME = f32[2]{0} parameter(0)
      %g.NAME = f32[8]{0} all-gather(%p.NAME), channel_id=7, replica_groups={{0,1,2,3}}, \
dimensions={0}, frontend_attributes={chain_id="3"}
      START
    }
    '''.replace('START', start).replace('NAME', name)


def test_an_asynchronous_collective_is_one_wherever_it_goes_on():
  """It starts before a loop and goes on beside what the loop does: once, not nine times."""
  text = module(body='%f.0 = f32[8]{0} fusion(%x.0), kind=kCustom, calls=%goes')
  text = text.replace('%z.0 = ', '%f.1 = f32[8]{0} fusion(%x.1), kind=kCustom, calls=%begins, '
                      'metadata={op_name="jit(one)/training/x"}\n  %z.0 = ')
  whole = text + textwrap.dedent(fused('goes', False)) + textwrap.dedent(fused('begins', True))
  assert collectives.count(whole).phases == {'training': {'all-gather': 32 * 3 / 4}}
  with pytest.raises(Incomplete, match='no start'):
    collectives.count(module(body='%f.0 = f32[8]{0} fusion(%x.0), kind=kCustom, calls=%goes',
                             more=fused('goes', False)))


def test_of_several_branches_the_dearest():
  branch = '''
    %NAME (p.NAME: f32[8]) -> f32[8] {
      %p.NAME = f32[8]{0} parameter(0)
      ROOT %r.NAME = f32[SIZE]{0} all-reduce(%p.NAME), replica_groups={{0,1}}, to_apply=%add
    }
    '''
  more = ''.join(textwrap.dedent(branch).replace('NAME', name).replace('SIZE', size)
                 for name, size in (('small', '8'), ('large', '80')))
  body = '%cond.0 = f32[8]{0} conditional(%i.0, %x.0, %x.0), branch_computations={%small, %large}'
  assert collectives.count(module(body=body) + more).total == 9 * 80 * 4


def test_the_weights_gathered_for_decoding_are_the_rollouts():
  """They carry the name of an argument; who uses them tells the phase."""
  text = module().replace('%z.0 = ', (
    '%g.0 = f32[8]{0} all-gather(%x.1), replica_groups={{0,1}}, dimensions={0}, '
    'metadata={op_name="state.policy.params"}\n  %z.0 = ')).replace(
      'tuple(%z.0, %x.1', 'tuple(%z.0, %g.0')
  assert collectives.count(text, 'scoring').phases['rollout']['all-gather'] == 8 * 4 / 2
