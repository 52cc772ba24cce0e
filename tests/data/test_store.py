"""One code path for files on disks and in an object store; what grows is put up whole."""

import gzip
import importlib.util
import json
import shutil
import urllib.error
import urllib.request

import object_store
import pyarrow
import pyarrow.parquet
import pytest

from rlhf_jax import __main__, configs
from rlhf_jax.data import builders, store
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.runtime import models

# gcsfs writes over what it was to append to, and warns
pytestmark = [object_store.NEEDED, pytest.mark.filterwarnings('error:Append mode')]


@pytest.fixture(scope='module')
def bucket():
  with pytest.MonkeyPatch.context() as patch, object_store.ObjectStore() as there:
    there.use(patch)
    yield there


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return tmp_path / 'cache' / 'rlhf_jax'


@pytest.fixture(params=['disk', 'store'])
def folder(request, tmp_path, bucket):
  """An empty folder of either kind."""
  if request.param == 'disk':
    return store.path(str(tmp_path / 'w'))
  for name in bucket.names():
    del bucket.objects[name]
  bucket.puts.clear()
  return store.path(f'gs://{object_store.BUCKET}/w')


def test_files_are_written_read_listed_and_removed(folder):
  store.write(folder / 'a' / 'b.json', 'ä\u2028\n')
  with store.writing(folder / 'a' / 'c', 'wb') as file:
    file.write(b'x' * 6_000_000)  # more than one request takes
  with store.writing(folder / 'd.txt') as file:
    file.write('text')
  assert (folder / 'a' / 'b.json').read_text('utf-8') == 'ä\u2028\n'
  assert (folder / 'a' / 'c').read_bytes() == b'x' * 6_000_000
  assert store.files(folder) == {'a/b.json': 6, 'a/c': 6_000_000, 'd.txt': 4}
  assert store.size(folder / 'd.txt') == 4
  assert [path.name for path in folder.glob('*/b.json')] == ['b.json']
  assert sorted(path.name for path in folder.iterdir()) == ['a', 'd.txt']
  store.remove(folder / 'a')
  store.remove(folder / 'nothing there')
  assert store.files(folder) == {'d.txt': 4} and not (folder / 'a').exists()


def test_a_write_that_fails_leaves_the_old_file(folder):
  store.write(folder / 'a', 'old')
  with pytest.raises(ZeroDivisionError), store.writing(folder / 'a') as file:
    file.write('half of the new')
    raise ZeroDivisionError
  assert (folder / 'a').read_text() == 'old' and store.files(folder) == {'a': 3}


def test_a_store_is_asked_again_every_time(folder, bucket):
  """Another process may have written since."""
  assert not (folder / 'x').exists() and store.files(folder) == {}
  if store.is_local(folder):
    store.write(folder / 'x', 'theirs')
  else:
    bucket.put('w/x', b'theirs')
  assert (folder / 'x').exists() and store.files(folder) == {'x': 6}
  assert [path.name for path in folder.iterdir()] == ['x']


def test_paths_keep_their_scheme(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert str(store.absolute(store.path('gs://b/w') / 'x')) == 'gs://b/w/x'
  assert str(store.absolute(store.path('w'))) == str(tmp_path / 'w')
  assert store.path(tmp_path) is tmp_path


def test_what_grows_is_put_up_when_it_is_synced(folder, bucket):
  growing = store.Growing(folder, ['rows'])
  with (growing.here / 'rows').open('a') as file:
    for row in range(4):
      file.write(f'{row}\n')
      file.flush()
      if row % 2:
        growing.sync()
        growing.sync()  # nothing has changed
    assert store.newest(folder / 'rows').read_text() == '0\n1\n2\n3\n'
  growing.close()
  again = store.Growing(folder, ['rows', 'not there yet'])
  with (again.here / 'rows').open('a') as file:
    file.write('4\n')
  again.close()
  assert (folder / 'rows').read_text() == '0\n1\n2\n3\n4\n'
  assert store.newest(folder / 'rows') == folder / 'rows'
  if not store.is_local(folder):
    assert bucket.puts['w/rows'] == 3 and bucket.appends == 0
    assert not growing.here.exists() and not again.here.exists()


def test_the_store_of_these_tests_refuses_to_append(bucket):
  """Both ways to append that there are: a composition, and a finished upload that goes on."""
  bucket.put('x', b'1')
  before, top = bucket.appends, f'{bucket.address}/upload/storage/v1/b/{object_store.BUCKET}/o'
  asked = [(f'{bucket.address}/storage/v1/b/{object_store.BUCKET}/o/x/compose', {}),
           (f'{top}?uploadType=resumable&upload_id=none', {'Content-Range': 'bytes 1-1/2'})]
  for url, headers in asked:
    with pytest.raises(urllib.error.HTTPError, match='400'):
      urllib.request.urlopen(urllib.request.Request(url, b'2', headers))
  assert bucket.appends == before + 2 and bucket.read('x') == b'1'
  bucket.appends = 0
  with pytest.raises(UserWarning, match='not supported'):
    (store.path(f'gs://{object_store.BUCKET}') / 'x').open('a')


def test_a_dataset_is_put_up_with_its_card_last_and_fetched_once(folder, bucket, cache, tmp_path):
  (tmp_path / 't.jsonl').write_text(''.join(
    json.dumps({'text': f'one two {i}'}) + '\n' for i in range(40)))
  source = (configs.Source('text', (str(tmp_path / 't.jsonl'),)),)
  place = builders.Place(folder)
  tokenizer = builders.tokenizer_for(configs.Tokenizer(vocabulary=300), source, place)
  build = lambda: builders.build(source, tokenizer, place, builders.Limits(length=16))
  rows = [build().train[i]['tokens'].tolist() for i in range(3)]
  [card] = folder.glob('data/text-*/card.json')
  if not store.is_local(folder):
    assert [name for name in bucket.puts if 'data/text-' in name][-1].endswith('/card.json')
    puts = dict(bucket.puts)
    shutil.rmtree(cache)  # as on another machine
    assert [build().train[i]['tokens'].tolist() for i in range(3)] == rows
    card.unlink()  # as after a kill while it was put up
    assert [build().train[i]['tokens'].tolist() for i in range(3)] == rows
    again = {name: count - puts[name] for name, count in bucket.puts.items()}
    assert {count for name, count in again.items() if 'data/text-' in name} == {1}
    assert not any(count for name, count in again.items() if 'data/text-' not in name)
    with pytest.raises(FileNotFoundError):
      store.fetched(folder, 'other', 'nothing.json')
    assert not list(cache.glob('*other*'))


def test_a_tokenizer_is_read_from_where_it_was_saved(folder):
  saved = Tokenizer.train(['one two three'], 300)
  saved.save(folder / 'tokenizer.json')
  assert Tokenizer.from_file(folder / 'tokenizer.json').identity == saved.identity


@pytest.mark.parametrize('form', ['.jsonl', '.jsonl.gz', '.json', '.parquet'])
def test_sources_are_read_from_where_they_lie(folder, form):
  rows = [{'text': f'one two {i}'} for i in range(30)]
  lines = ''.join(json.dumps(row) + '\n' for row in rows).encode()
  with store.writing(folder / f't{form}', 'wb') as file:
    if form == '.parquet':
      pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
      file.write({'.jsonl': lines, '.jsonl.gz': gzip.compress(lines),
                  '.json': json.dumps(rows).encode()}[form])
  found, card = builders.read((configs.Source('text', (str(folder / f't{form}'),)),),
                              builders.Place(folder))
  assert [record.text for record in found] == [row['text'] for row in rows]
  assert list(card) == [f't{form}']
  with pytest.raises(configs.BadInput, match=f'nothing{form}'):
    builders.read((configs.Source('text', (str(folder / f'nothing{form}'),)),),
                  builders.Place(folder))


def test_a_model_of_others_must_be_local(folder, bucket):
  store.write(folder / 'config.json', '{"model_type": "llama"}')
  with pytest.raises(configs.BadInput, match='config.json' if store.is_local(folder) else 'cp -r'):
    models.load(folder)


@pytest.mark.parametrize('words', [
  ['run', 'experiments/quickstart.py', 'gpt', '--workdir', 'DIR'], ['report', 'DIR'],
  ['sample', '--workdir', 'DIR', '--run', 'gpt', '--prompt', 'x'],
  ['sample', '--model', 'DIR/gpt', '--prompt', 'x'],
  ['export', '--workdir', 'DIR', '--run', 'gpt', '--out', 'nowhere'],
  ['sweep', 'experiments/kl_sweep.py', '--workdir', 'DIR']], ids=lambda words: words[0])
@pytest.mark.parametrize('where, told', [
  ('gs://no-such-bucket/w', 'no bucket gs://no-such-bucket'),
  ('s3://bucket/w', 'expected a folder, or gs://BUCKET/FOLDER')])
def test_a_workdir_that_cannot_be_is_told_before_any_work(bucket, capsys, words, where, told):
  assert __main__.main([word.replace('DIR', where) for word in words]) == 2
  last = capsys.readouterr().err.strip().splitlines()[-1]
  assert told in last and where in last


def test_without_gcsfs_the_fix_is_named(bucket, monkeypatch, capsys):
  there = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, 'find_spec',
                      lambda name, *rest: None if name == 'gcsfs' else there(name, *rest))
  assert __main__.main(['report', 'gs://bucket/w']) == 2
  assert 'pip install -e .[gcs]' in capsys.readouterr().err
