"""The small files: whole or absent, compared by what counts, read back as they were."""

import contextlib
import errno
import json
import os
import types

import numpy as np
import pytest

from rlhf_jax import configs
from rlhf_jax.runtime import workdir

PPO = configs.PPO(prompts=(configs.Source(files=('a', 'b'), kind='prompts'),), reward='x.py:f',
                  mesh=configs.Mesh(data=2), kl_coef=0.1)


@pytest.mark.parametrize('config', [
  PPO, configs.Language(), configs.Collect(k=(2, 3), labelers=('a', 'b')),
  configs.Reward(data=(configs.Source(),), heldout_data='held'), configs.Reward(),
  configs.Evaluate(models={'a': configs.Sampled('b', 0.5, 4, 'x')})])
def test_a_config_is_read_back_as_it_was(tmp_path, config):
  workdir.write_json(tmp_path / 'config.json', workdir.describe(config, {}))
  assert workdir.config_of(tmp_path) == config


def test_hash_counts_fields_kind_and_parents_and_not_the_mesh():
  import dataclasses
  of = lambda config, **parents: workdir.describe(config, parents)['hash']
  assert of(PPO) == of(dataclasses.replace(PPO, mesh=configs.Mesh(tensor=4)))
  different = {of(PPO), of(dataclasses.replace(PPO, kl_coef=0.2)), of(PPO, policy=('sft', '1')),
               of(PPO, policy=('sft', '2')), of(PPO, policy=('gpt', '1'))}
  assert len(different) == 5


def test_a_run_goes_on_without_the_kernel_and_from_before_there_was_one(tmp_path):
  with_kernel = configs.Language(model=configs.Model(vocabulary=9))
  without = configs.Language(model=configs.Model(vocabulary=9, fused=False))
  old = workdir.describe(with_kernel, {})
  del old['config']['model']['fused']
  workdir.write_json(tmp_path / 'config.json', old)
  (tmp_path / 'checkpoints').mkdir()
  assert workdir.check_same(tmp_path, workdir.describe(with_kernel, {}))
  assert workdir.check_same(tmp_path, workdir.describe(without, {}))
  wider = configs.Language(model=configs.Model(vocabulary=9, width=64))
  with pytest.raises(configs.BadInput, match=r'model\.width is 128 there and 64 now; take'):
    workdir.check_same(tmp_path, workdir.describe(wider, {}))


def test_1_and_1_point_0_are_one_configuration_for_the_run_and_what_rests_on_it(tmp_path):
  whole, point = (configs.Language(optimizer=configs.Optimizer(clip=clip)) for clip in (1, 1.0))
  child = configs.Language(init_from='gpt', epochs=2)
  for made, now in ((whole, point), (point, whole)):
    gpt, sft = tmp_path / str(made.optimizer.clip) / 'gpt', tmp_path / f'{now.optimizer.clip}sft'
    old = workdir.describe(made, {})
    assert old['hash'] != workdir.describe(now, {})['hash']  # as hashes are in workdirs there are
    workdir.write_json(gpt / 'config.json', old)
    workdir.write_json(sft / 'config.json',
                       workdir.describe(child, {'init_from': ('gpt', old['hash'])}))
    for folder in (gpt, sft):
      (folder / 'checkpoints').mkdir()
    described = workdir.describe(now, {}, gpt)
    assert described['hash'] == old['hash'] and workdir.check_same(gpt, described)
    again = configs.Language(init_from='gpt', epochs=2.0)
    parents = {'init_from': ('gpt', described['hash'])}
    assert workdir.check_same(sft, workdir.describe(again, parents, sft))
    other = workdir.describe(configs.Language(optimizer=configs.Optimizer(clip=2)), {}, gpt)
    assert other['hash'] != old['hash']
    with pytest.raises(configs.BadInput, match=r'optimizer\.clip is 1(\.0)? there and 2 now'):
      workdir.check_same(gpt, other)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
  path = tmp_path / 'a.json'
  workdir.write_json(path, {'x': 1})

  def full(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError, match='No space'):
    workdir.write_json(path, {'x': 2})
  assert json.loads(path.read_text()) == {'x': 1}
  assert list(tmp_path.iterdir()) == [path]


def test_json_holds_no_nan_and_no_numpy(tmp_path):
  value = {'a': float('nan'), 'b': [np.float32(np.inf), np.int64(3)], 'c': np.arange(2), 'd': True,
           'e': np.float32(0.5), 'f': {'g': (1, None)}}
  workdir.write_json(tmp_path / 'x.json', value)
  assert json.loads((tmp_path / 'x.json').read_text()) == {
    'a': None, 'b': [None, 3], 'c': [0, 1], 'd': True, 'e': 0.5, 'f': {'g': [1, None]}}


def test_a_broken_file_is_named(tmp_path):
  (tmp_path / 'config.json').write_text('{"kind": "PP')
  with pytest.raises(configs.BadInput, match=r'config.json: is not JSON'):
    workdir.config_of(tmp_path)
  (tmp_path / 'config.json').write_text('{"kind": "PPO", "config": {"bata": 3}}')
  with pytest.raises(configs.BadInput, match=r'not a config of this version'):
    workdir.config_of(tmp_path)
  with pytest.raises(configs.BadInput, match=r'holds no run'):
    workdir.config_of(tmp_path / 'nothing')


@pytest.mark.parametrize('error, full', [
  (OSError(errno.ENOSPC, 'x'), True),
  (OSError(errno.EDQUOT, 'x'), True),
  (ValueError('RESOURCE_EXHAUSTED: Error writing "/x" [OS error 28: ENOSPC '
              'No space left on device]'), True),
  (RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes'), False),
  (OSError(errno.EACCES, 'x'), False),
])
def test_a_full_disk_is_recognised(error, full):
  assert workdir.is_no_space(error) is full
  try:
    try:
      raise error
    except Exception as inner:
      raise RuntimeError('a save failed') from inner
  except RuntimeError as outer:
    assert workdir.is_no_space(outer) is full


def test_the_stopwatch_goes_on(tmp_path):
  workdir.write_json(tmp_path / 'seconds.json', {'seconds': 100.0})
  with workdir.Stopwatch(tmp_path).ticking() as watch:
    assert 100 <= watch.seconds < 105
  assert 100 <= json.loads((tmp_path / 'seconds.json').read_text())['seconds'] < 105


def test_the_stopwatch_says_what_it_could_not_count(tmp_path, caplog):
  (tmp_path / 'seconds.json').write_text('{"sec')
  with workdir.Stopwatch(tmp_path).ticking() as watch:
    assert watch.seconds < 5
  assert 'the time before this start is not counted' in caplog.text
  broken = workdir.Stopwatch(tmp_path)
  broken._file = tmp_path / 'seconds.json' / 'below a file'
  broken._write()
  broken._write()
  assert caplog.text.count('not written') == 1


@pytest.mark.parametrize('number, fails', [(errno.ENOLCK, False), (errno.EBADF, True)])
def test_only_a_file_system_without_locks_goes_without(tmp_path, monkeypatch, caplog, number,
                                                       fails):
  def refuse(*_):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(workdir.fcntl, 'flock', refuse)
  with pytest.raises(OSError) if fails else contextlib.nullcontext(), workdir.lock(tmp_path):
    assert 'nothing keeps a second process' in caplog.text


def test_waiting_for_a_lock_is_told_once(tmp_path, monkeypatch, caplog):
  with contextlib.ExitStack() as other, caplog.at_level('INFO', 'rlhf_jax'):
    other.enter_context(workdir.lock(tmp_path))
    sleeps = []
    sleep = lambda seconds: sleeps.append(seconds) or (len(sleeps) == 2 and other.close())
    monkeypatch.setattr(workdir, 'time', types.SimpleNamespace(sleep=sleep))
    with workdir.waiting(tmp_path), pytest.raises(workdir.Busy), workdir.lock(tmp_path):
      pass
  assert len(sleeps) == 2
  assert caplog.text.count(f'waiting for the process at work in {tmp_path}') == 1
