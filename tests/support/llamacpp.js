// Greedy texts of llama.cpp: node llamacpp.js JOB OUT, run in the folder that holds node_modules. Everything in float32, one thread.
const fs = require('fs')
const path = require('path')
const { loadModel } = require(path.join(process.cwd(), 'node_modules', '@fugood', 'llama.node'))

const GREEDY = {
  temperature: 0, top_k: 1, top_p: 1, min_p: 0, penalty_repeat: 1, penalty_last_n: 0, penalty_freq: 0, penalty_present: 0,
  dry_multiplier: 0, xtc_probability: 0, mirostat: 0, seed: 1,
}

async function main() {
  const job = JSON.parse(fs.readFileSync(process.argv[2]))
  const options = { n_ctx: 1024, n_batch: 1024, n_threads: 1, n_gpu_layers: 0, n_parallel: 1, flash_attn_type: 'off', cache_type_k: 'f32', cache_type_v: 'f32' }
  const context = await loadModel({ model: job.model, ...options })
  const texts = []
  for (const prompt of job.prompts) texts.push((await context.completion({ prompt, n_predict: job.n_tokens, ...GREEDY })).text)
  await context.release()
  fs.writeFileSync(process.argv[3], JSON.stringify(texts))
}

main().catch((error) => { console.error(error); process.exit(1) })
